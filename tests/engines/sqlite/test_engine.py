"""The engine: its URL, its start, and its stop."""

# Files are read and written on the event loop: they are small.
# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hubbub.core.publication import Position
from hubbub.engines import engine_for
from hubbub.engines.sqlite import SQLiteEngine
from hubbub.engines.sqlite import engine as module
from hubbub.exceptions import EngineUnavailable, InvalidURL
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.sqlite.helpers import locked, make, refused, rows, started

#: The id of a user without rights.
WITHOUT_RIGHTS = 65534


# The URL


@pytest.mark.parametrize("url", ["sqlite:///chat.db", "SQLite:///./chat.db"])
def test_a_relative_path_is_taken_from_the_present_directory(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = engine_for(url)
    monkeypatch.undo()
    assert isinstance(engine, SQLiteEngine)
    assert engine.path == str(tmp_path / "chat.db")


def test_four_slashes_begin_an_absolute_path() -> None:
    assert SQLiteEngine("sqlite:////var/lib/chat%20room.db").path == "/var/lib/chat%20room.db"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://:memory:",
        "sqlite:/chat.db",
        "sqlite://user:s3cret@host/chat.db",
        "sqlite:///s3cret.db?mode=memory",
        "sqlite:///s3cret\n.db",
        "sqlite:///s3cret/",
    ],
)
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(InvalidURL, match=r"^Expected 'sqlite:///relative\.db' or .*, but got ") as info:
        engine_for(url)
    assert "s3cret" not in str(info.value)


def test_the_error_of_a_url_for_memory_names_the_memory_engine() -> None:
    with pytest.raises(InvalidURL, match="memory://"):
        engine_for("sqlite:///:memory:")


# Starting


async def test_the_directory_must_exist(tmp_path: Path) -> None:
    await refused(tmp_path / "missing" / "hub.db", "directory does not exist")
    assert list(tmp_path.iterdir()) == []


async def test_a_directory_in_place_of_the_file_is_refused(path: Path) -> None:
    path.mkdir()
    await refused(path, "unable to open")


async def test_a_file_of_another_program_is_refused_and_not_changed(path: Path) -> None:
    path.write_bytes(b"a letter, not a database" * 100)
    await refused(path, "not a database")
    assert path.read_bytes() == b"a letter, not a database" * 100


@contextmanager
def without_rights() -> Iterator[Path]:
    """A folder and the rights of a user other than root, who may write to any file."""
    with TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, WITHOUT_RIGHTS, -1)
        os.seteuid(WITHOUT_RIGHTS)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="rights are different elsewhere")
async def test_a_file_that_is_read_only_is_refused() -> None:
    with without_rights() as folder:
        path = folder / "hub.db"
        async with started(path):
            pass
        path.chmod(0o444)
        await refused(path, "readonly")


async def test_the_start_on_a_locked_file_fails_in_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(path):
        pass
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.2)
    with locked(path):
        await refused(path, "within 0.2 s")


async def test_the_start_waits_for_a_file_that_is_locked_for_a_moment(path: Path) -> None:
    async with started(path):
        pass
    engine = make(path)
    with locked(path):
        starting = asyncio.create_task(engine.start(Collector()))
        await asyncio.sleep(0.1)
        assert not starting.done()
    await starting
    await engine.stop()


async def test_several_engines_create_the_file_at_once(path: Path) -> None:
    engines = [make(path) for _ in range(8)]
    await asyncio.gather(*(engine.start(Collector()) for engine in engines))
    positions = await asyncio.gather(*(each.publish(publication("chat", "hi"), HISTORY) for each in engines))
    assert sorted(position.offset for position in positions) == list(range(1, 9))
    await asyncio.gather(*(engine.stop() for engine in engines))


async def test_tables_of_another_program_in_the_file_are_not_changed(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE streams (name)")
    async with started(path) as (engine, _):
        await engine.publish(publication("chat", "hi"))
    assert rows(path, "SELECT * FROM streams") == []


# Stopping


async def test_an_engine_stops_at_once_although_the_file_is_locked(path: Path) -> None:
    engine = make(path)
    await engine.start(Collector())
    with locked(path):
        publishing = asyncio.create_task(engine.publish(publication("chat", "1")))
        await asyncio.sleep(0)
        await engine.stop()
        with pytest.raises(EngineUnavailable, match="was stopped"):
            await publishing


async def test_publications_that_were_submitted_are_accepted_before_the_stop(path: Path) -> None:
    engine = make(path)
    await engine.start(Collector())
    publishing = [
        asyncio.create_task(engine.publish(publication("chat", str(n)), HISTORY)) for n in range(1000)
    ]
    await asyncio.sleep(0)
    await engine.stop()
    results = await asyncio.gather(*publishing, return_exceptions=True)
    published = [each for each in results if isinstance(each, Position)]
    assert published
    assert {type(each) for each in results} <= {Position, EngineUnavailable}
    async with started(path) as (engine, _):
        assert (await engine.history("chat")).position == published[-1]
