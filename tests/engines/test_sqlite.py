"""What is special about ``sqlite:///``: several processes, and a file that things happen to."""

# What happens to the file happens on the event loop: it is small.
# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from hubbub.core.history import History
from hubbub.core.publication import START, Position, pack
from hubbub.engines import engine_for
from hubbub.engines.base import PresenceChange
from hubbub.engines.sqlite import SQLiteEngine
from hubbub.engines.sqlite import engine as engine_module
from hubbub.engines.sqlite import store as store_module
from hubbub.engines.sqlite import worker as worker_module
from hubbub.exceptions import EngineUnavailable, HubNotRunning, InvalidData, InvalidURL
from hubbub.testing.engine_contract import DEADLINE, HISTORY, Collector, publication

#: A user who has no rights anywhere.
NOBODY = 65534

#: A process that publishes ``count`` times to "chat", when told to, and then tells what it has heard once
#: that ends with "the end".
PROCESS = """
import asyncio, sys
from hubbub.core.publication import Publication
from hubbub.engines import engine_for
from hubbub.testing.engine_contract import HISTORY, Collector, publication

async def main(url, name, count):
    engine, collector = engine_for(url), Collector()
    await engine.start(collector)
    position, _ = await engine.subscribe("chat", HISTORY)
    print("ready", *position, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for start in range(0, count, 50):
        texts = [f"{name}:{number}" for number in range(start, min(start + 50, count))]
        await asyncio.gather(*(engine.publish(publication("chat", text), HISTORY) for text in texts))
    print("published", flush=True)
    await collector.until(lambda: "the end" in collector.texts("chat")[-1:])
    await engine.stop()
    print(*(f"{each.offset}={each.data.decode()}" for each in collector.publications), sep=";", flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.db"


def make(path: Path, namespace: str = "hubbub") -> SQLiteEngine:
    return SQLiteEngine(f"sqlite:///{path}", namespace)


@asynccontextmanager
async def started(path: Path, namespace: str = "hubbub") -> AsyncIterator[tuple[SQLiteEngine, Collector]]:
    engine, collector = make(path, namespace), Collector()
    await engine.start(collector)
    try:
        yield engine, collector
    finally:
        await engine.stop()


@asynccontextmanager
async def process(path: Path, name: str, count: int) -> AsyncIterator[Process]:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROCESS, f"sqlite:///{path}", name, str(count),
        stdin=PIPE, stdout=PIPE, limit=1_000_000,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DEADLINE):
            yield running
            await running.communicate()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


async def line(running: Process) -> str:
    assert running.stdout is not None
    return (await running.stdout.readline()).decode().rstrip("\n")


def go(running: Process) -> None:
    assert running.stdin is not None
    running.stdin.write(b"\n")


def rows(path: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


async def found(path: Path, statement: str, expected: list[Any]) -> None:
    """Wait until the file holds exactly that."""
    async with asyncio.timeout(DEADLINE):
        while await asyncio.to_thread(rows, path, statement) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program is writing, and takes its time."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def remove(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()


# The URL


@pytest.mark.parametrize("url", ["sqlite:///chat.db", "SQLite:///./chat.db"])
def test_a_relative_path_is_taken_from_the_present_directory(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = engine_for(url)
    monkeypatch.undo()
    assert isinstance(engine, SQLiteEngine)
    assert engine._path == str(tmp_path / "chat.db")


def test_four_slashes_begin_an_absolute_path() -> None:
    assert SQLiteEngine("sqlite:////var/lib/chat%20room.db")._path == "/var/lib/chat%20room.db"


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


def test_who_wants_no_file_is_told_what_there_is_instead() -> None:
    with pytest.raises(InvalidURL, match="memory://"):
        engine_for("sqlite:///:memory:")


# Starting


async def refused(path: Path, message: str) -> None:
    engine = make(path)
    with pytest.raises(EngineUnavailable, match=message) as info:
        await engine.start(Collector())
    assert str(path) in str(info.value)
    with pytest.raises(HubNotRunning):
        await engine.publish(publication("chat", "hello"))


async def test_the_directory_must_exist(tmp_path: Path) -> None:
    await refused(tmp_path / "missing" / "hub.db", "directory .* to exist")
    assert list(tmp_path.iterdir()) == []


async def test_a_directory_is_no_file(path: Path) -> None:
    path.mkdir()
    await refused(path, "unable to open")


async def test_a_file_of_something_else_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"a letter, not a database" * 100)
    await refused(path, "not a database")
    assert path.read_bytes() == b"a letter, not a database" * 100


@pytest.mark.parametrize("version", [99, -1])
async def test_a_schema_of_a_version_that_is_not_known_is_refused(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    await refused(path, f"schema version 3 or an earlier one, but got {version}")
    assert rows(path, "PRAGMA user_version") == [(version,)]


class OldWorker:
    """A process of an earlier version, with the statements that it publishes with."""

    def __init__(self, path: Path, version: int) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        for step in range(1, version + 1):
            for statement in store_module.STEPS[step]:
                self.connection.execute(statement)
        self.connection.execute(f"PRAGMA user_version = {version}")

    def publish(self, text: str, offset: int, key: str | None = None) -> None:
        now = time.time()
        packed = pack(publication("chat", text).at(Position(offset, "old"), now))
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        stream = ("hubbub", "chat", "old", offset, HISTORY.size, HISTORY.ttl, now)
        execute("REPLACE INTO hubbub_streams VALUES (?, ?, ?, ?, ?, ?, ?)", stream)
        execute(
            "INSERT INTO hubbub_publications (namespace, channel, offset, time, expires, packed)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            ("hubbub", "chat", offset, now, now + 60, packed),
        )
        if key is not None:
            execute(
                "REPLACE INTO hubbub_keys VALUES (?, ?, ?, ?, ?, ?)",
                ("hubbub", "chat", key, offset, "old", now + 300),
            )
        execute("COMMIT")


@pytest.mark.parametrize("version", [1, 2])
async def test_a_file_of_an_earlier_version_is_taken_over_while_it_is_in_use(
    path: Path, version: int
) -> None:
    old = OldWorker(path, version)
    with closing(old.connection):
        old.publish("1", 1, "key")
        # All of them find the old version.
        engines = [make(path) for _ in range(5)]
        heard = Collector()
        await asyncio.gather(*(engine.start(heard) for engine in engines))
        assert rows(path, "PRAGMA user_version") == [(store_module.SCHEMA_VERSION,)]
        for engine in engines:
            assert [each.data for each in (await engine.history("chat")).publications] == [b"1"]
            assert await engine.publish(publication("chat", "1"), HISTORY, "key") == (1, "old")
        # Earlier versions did not write down the id.
        assert await engines[0].subscribe("chat", HISTORY) == ((1, "old"), "")
        assert await engines[0].update_presence("lease", 60, [PresenceChange("chat", "a", b"")], begin=True)
        assert await engines[1].presence("chat") == {"a": b""}
        newest = publication("chat", "2")
        assert await engines[1].publish(newest) == (2, "old")
        assert await engines[2].tops(["chat"]) == [((2, "old"), newest.id)]
        # A process that has had the file open goes on.
        old.publish("3", 3)
        assert await engines[2].tops(["chat"]) == [((3, "old"), "")]
        await heard.heard("chat", ["2", "3"])
        assert (heard.disconnects, heard.reconnects) == (0, 0)
        await asyncio.gather(*(engine.stop() for engine in engines))


async def test_a_step_to_a_version_is_taken_in_full_or_not_at_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(store_module.STEPS, 2, [*store_module.STEPS[2], "CREATE TABLE hubbub_streams (a)"])
    await refused(path, "hubbub_streams already exists")
    assert rows(path, "PRAGMA user_version") == [(0,)]
    assert rows(path, "SELECT name FROM sqlite_schema") == []


@contextmanager
def nobody() -> Iterator[Path]:
    """A folder, and the rights, of a user who is not root: root may write everything."""
    with TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, NOBODY, -1)
        os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="rights are different elsewhere")
async def test_a_file_that_is_read_only_is_refused() -> None:
    with nobody() as folder:
        path = folder / "hub.db"
        async with started(path):
            pass
        path.chmod(0o444)
        await refused(path, "readonly")


async def test_a_file_that_stays_locked_is_given_up_in_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(path):
        pass
    monkeypatch.setattr(engine_module, "DEADLINE", 0.2)
    with locked(path):
        await refused(path, "within 0.2 s")


async def test_a_file_that_is_locked_for_a_moment_is_waited_for(path: Path) -> None:
    async with started(path):
        pass
    engine = make(path)
    with locked(path):
        starting = asyncio.create_task(engine.start(Collector()))
        await asyncio.sleep(0.1)
        assert not starting.done()
    await starting
    await engine.stop()


async def test_many_can_make_the_file_at_once(path: Path) -> None:
    engines = [make(path) for _ in range(8)]
    await asyncio.gather(*(engine.start(Collector()) for engine in engines))
    positions = await asyncio.gather(*(each.publish(publication("chat", "hi"), HISTORY) for each in engines))
    assert sorted(position.offset for position in positions) == list(range(1, 9))
    await asyncio.gather(*(engine.stop() for engine in engines))


async def test_tables_of_others_in_the_file_are_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE streams (name)")
    async with started(path) as (engine, _):
        await engine.publish(publication("chat", "hi"))
    assert rows(path, "SELECT * FROM streams") == []


# Several processes


async def test_processes_hear_the_same_in_the_same_order(path: Path) -> None:
    async with process(path, "a", 200) as a, process(path, "b", 200) as b, process(path, "c", 200) as c:
        processes = (a, b, c)
        for each in processes:
            assert (await line(each)).startswith("ready 0 ")
        for each in processes:
            go(each)
        for each in processes:
            assert await line(each) == "published"
        async with started(path) as (engine, _):
            assert (await engine.publish(publication("chat", "the end"))).offset == 601
        heard = [(await line(each)).split(";") for each in processes]
        assert heard[0] == heard[1] == heard[2]
        assert [each.partition("=")[0] for each in heard[0]] == [str(offset) for offset in range(1, 602)]
        texts = [each.partition("=")[2] for each in heard[0]]
        for name in "abc":
            assert [text for text in texts if text.startswith(name)] == [f"{name}:{n}" for n in range(200)]


async def test_a_process_that_is_killed_leaves_nothing_half_written(path: Path) -> None:
    async with started(path) as (engine, collector), process(path, "a", 1_000_000) as victim:
        await engine.subscribe("chat", HISTORY)
        await line(victim)
        go(victim)
        await collector.until(lambda: len(collector.publications) > 200)
        victim.kill()
        await victim.wait()
        last = await engine.publish(publication("chat", "the end"))
        await collector.until(lambda: collector.publications[-1].position == last)
        heard = [each.offset for each in collector.publications]
        assert heard == list(range(1, last.offset + 1))
        assert [each.offset for each in (await engine.history("chat")).publications] == heard[-HISTORY.size :]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "SELECT top FROM hubbub_streams") == [(last.offset,)]


async def test_positions_and_history_outlive_the_processes(path: Path) -> None:
    async with started(path) as (engine, _):
        first = await engine.publish(publication("chat", "1"), HISTORY, "key")
    async with started(path) as (engine, collector):
        assert (await engine.subscribe("chat", HISTORY)).position == first
        assert await engine.publish(publication("chat", "1"), HISTORY, "key") == first
        assert await engine.publish(publication("chat", "2"), HISTORY) == (2, first.epoch)
        await collector.heard("chat", ["2"])
        page = await engine.history("chat")
        assert [each.data for each in page.publications] == [b"1", b"2"]


async def test_namespaces_share_a_file_and_nothing_else(path: Path) -> None:
    async with started(path, "a") as (a, heard_by_a), started(path, "b") as (b, heard_by_b):
        for engine in (a, b):
            await engine.subscribe("chat", HISTORY)
        await a.publish(publication("chat", "to a"), None, "key")
        await b.publish(publication("chat", "to b"), None, "key")
        await heard_by_a.heard("chat", ["to a"])
        await heard_by_b.heard("chat", ["to b"])
        await a.remove_history("chat")
        assert [each.data for each in (await b.history("chat")).publications] == [b"to b"]


async def test_namespaces_have_leases_and_presence_of_their_own(path: Path) -> None:
    async with started(path, "a") as (a, _), started(path, "b") as (b, _):
        entered = [PresenceChange("chat", "1", b"in a")]
        assert await a.update_presence("lease", 0, entered, begin=True)
        assert not await b.update_presence("lease", 60)
        assert await b.presence("chat") == {}
        assert list(await b.expire_presence(-1)) == []
        assert await a.presence("chat") == {"1": b"in a"}
        assert list(await a.expire_presence(-1)) == [PresenceChange("chat", "1", None)]


async def test_a_burst_longer_than_the_history_is_heard_in_full(path: Path) -> None:
    short = History(size=2, ttl=60)
    async with started(path) as (engine, _), started(path) as (other, collector):
        await other.subscribe("chat", short)
        texts = [str(number) for number in range(2000)]
        await asyncio.gather(*(engine.publish(publication("chat", text), short) for text in texts))
        await collector.heard("chat", texts)
        assert len((await other.history("chat")).publications) == 2


async def test_what_came_before_subscribing_is_not_handed_over(path: Path) -> None:
    async with started(path) as (engine, collector):
        for number in range(20):
            before = asyncio.create_task(engine.publish(publication("chat", f"before {number}")))
            await asyncio.sleep(0)
            await engine.subscribe("chat")
            await engine.publish(publication("chat", f"after {number}"))
            await before
            await engine.unsubscribe("chat")
        assert [text.split()[0] for text in collector.texts("chat")] == ["after"] * len(
            collector.publications
        )


# A file that things happen to


async def test_while_the_file_is_locked_publishing_fails_in_time_and_works_afterwards(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(path) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        first = await engine.publish(publication("chat", "1"))
        with locked(path):
            monkeypatch.setattr(engine_module, "DEADLINE", 0.2)
            publishing = [engine.publish(publication("chat", "never")) for _ in range(3)]
            results = await asyncio.gather(*publishing, return_exceptions=True)
            assert [type(each) for each in results] == [EngineUnavailable] * 3
            assert "within 0.2 s" in str(results[0])
            # Reading needs no lock.
            assert (await engine.history("chat")).position == first
            monkeypatch.undo()
            publishing_late = asyncio.create_task(engine.publish(publication("chat", "2")))
            await asyncio.sleep(0.05)
            assert not publishing_late.done()
        assert (await publishing_late).offset == 2
        await collector.heard("chat", ["1", "2"])
        assert collector.reconnects == 0


async def test_it_stops_at_once_although_the_file_is_locked(path: Path) -> None:
    engine = make(path)
    await engine.start(Collector())
    with locked(path):
        publishing = asyncio.create_task(engine.publish(publication("chat", "1")))
        await asyncio.sleep(0)
        await engine.stop()
        with pytest.raises(EngineUnavailable, match="was stopped"):
            await publishing


async def test_what_was_submitted_is_published_before_it_stops(path: Path) -> None:
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


@pytest.mark.parametrize("with_wal", [True, False], ids=["all of it", "the file alone"])
async def test_a_file_that_is_removed_is_made_again(path: Path, with_wal: bool) -> None:
    async with started(path) as (engine, collector), started(path) as (other, heard_by_other):
        before, _ = await engine.subscribe("chat", HISTORY)
        await other.subscribe("chat", HISTORY)
        await engine.publish(publication("chat", "1"))
        await heard_by_other.heard("chat", ["1"])
        if with_wal:
            remove(path)
        else:
            path.unlink()
        await collector.until(lambda: collector.reconnects == 1)
        await heard_by_other.until(lambda: heard_by_other.reconnects == 1)
        # Without being told again, it is a channel with history.
        after = await engine.publish(publication("chat", "2"))
        assert after.offset == 1
        assert after.epoch != before.epoch
        for each in (collector, heard_by_other):
            await each.heard("chat", ["1", "2"])
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_file_that_is_replaced_is_opened_again(path: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    async with started(path) as (engine, _):
        first = await engine.publish(publication("chat", "1"), HISTORY)
    shutil.copy(path, backup)
    async with started(path) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        for number in (2, 3):
            await engine.publish(publication("chat", str(number)))
        remove(path)
        backup.rename(path)
        await collector.until(lambda: collector.reconnects == 1)
        assert (await engine.history("chat")).position == first
        assert await engine.publish(publication("chat", "other 2")) == (2, first.epoch)
        await collector.heard("chat", ["2", "3", "other 2"])


async def test_a_directory_that_is_away_is_waited_for(path: Path, tmp_path: Path) -> None:
    directory, elsewhere = tmp_path / "here", tmp_path / "there"
    directory.mkdir()
    async with started(directory / "hub.db") as (engine, collector):
        await engine.subscribe("chat")
        for number in (1, 2):
            directory.rename(elsewhere)
            # Told before anybody could ask, and only once, however often it is tried.
            for _ in range(2):
                with pytest.raises(EngineUnavailable, match="directory"):
                    await engine.publish(publication("chat", "never"))
                assert (collector.disconnects, collector.reconnects) == (number, number - 1)
            elsewhere.rename(directory)
            await collector.until(lambda n=number: collector.reconnects == n)  # type: ignore[misc]
            assert collector.disconnects == number
        await engine.publish(publication("chat", "2"))
        await collector.heard("chat", ["2"])


async def test_a_file_that_cannot_be_used_for_several_reasons_is_away_once(tmp_path: Path) -> None:
    directory, elsewhere, useless = tmp_path / "here", tmp_path / "there", tmp_path / "useless"
    directory.mkdir()
    useless.mkdir()
    (useless / "hub.db").write_bytes(b"a letter, not a database" * 100)
    async with started(directory / "hub.db") as (engine, collector):
        directory.rename(elsewhere)
        await collector.until(lambda: collector.disconnects == 1)
        useless.rename(directory)
        reason = ""
        async with asyncio.timeout(DEADLINE):
            while "not a database" not in reason:
                with pytest.raises(EngineUnavailable) as info:
                    await engine.history("chat")
                reason = str(info.value)
        directory.rename(useless)
        elsewhere.rename(directory)
        await collector.until(lambda: collector.reconnects == 1)
        assert collector.disconnects == 1


async def test_a_file_that_is_locked_when_it_is_to_be_opened_again_is_away(path: Path) -> None:
    async with started(path) as (engine, collector):

        def fail(store: store_module.Store, now: float) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with locked(path):
            with pytest.raises(EngineUnavailable, match="disk I/O error"):
                await engine._do(fail, writes=False)
            await collector.until(lambda: collector.disconnects == 1)
            publishing = asyncio.create_task(engine.publish(publication("chat", "1")))
            assert collector.reconnects == 0
        assert await publishing == START
        assert (collector.disconnects, collector.reconnects) == (1, 1)


async def test_who_stops_while_the_file_is_away_is_told_nothing_more(tmp_path: Path) -> None:
    directory = tmp_path / "here"
    directory.mkdir()
    async with started(directory / "hub.db") as (_, collector):
        directory.rename(tmp_path / "there")
        await collector.until(lambda: collector.disconnects == 1)
    assert (collector.disconnects, collector.reconnects) == (1, 0)


async def test_presence_in_a_file_that_is_lost_is_entered_again(path: Path) -> None:
    async with started(path) as (engine, collector), started(path) as (other, _):
        entered = [PresenceChange("chat", "a", b"data")]
        assert await engine.update_presence("one", 60, entered, begin=True)
        remove(path)
        await collector.until(lambda: collector.reconnects == 1)
        assert not await engine.update_presence("one", 60)
        assert await other.presence("chat") == {}
        assert await engine.update_presence("two", 60, entered, begin=True)
        assert await other.presence("chat") == {"a": b"data"}


async def test_a_full_disk_refuses_what_does_not_fit_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(path) as (engine, collector):
        await engine.subscribe("chat", HISTORY)

        def limit(store: store_module.Store, _: float) -> None:
            store._execute("PRAGMA max_page_count = 50")

        await engine._do(limit, writes=False)
        texts = ["1", "x" * 1_000_000, "2"]
        results = await asyncio.gather(
            *(engine.publish(publication("chat", text)) for text in texts), return_exceptions=True
        )
        assert isinstance(results[1], EngineUnavailable)
        assert "full" in str(results[1])
        assert [each.offset for each in results[::2] if isinstance(each, Position)] == [1, 2]
        await collector.heard("chat", ["1", "2"])
        assert collector.reconnects == 0


async def test_an_error_of_one_publish_is_not_that_of_others(path: Path) -> None:
    async with started(path) as (engine, _):

        def refuse(store: store_module.Store, now: float) -> None:
            store.publish(publication("chat", "never"), HISTORY, None, now)
            raise sqlite3.DataError("too big")

        results = await asyncio.gather(
            engine.publish(publication("chat", "1"), HISTORY),
            engine._do(refuse),
            engine.publish(publication("chat", "2"), HISTORY),
            return_exceptions=True,
        )
        assert isinstance(results[1], InvalidData)
        page = await engine.history("chat")
        assert [(each.offset, each.data) for each in page.publications] == [(1, b"1"), (2, b"2")]


async def test_after_an_error_of_the_disk_the_file_is_opened_again(path: Path) -> None:
    async with started(path) as (engine, collector):

        def fail(store: store_module.Store, now: float) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with pytest.raises(EngineUnavailable, match="disk I/O error"):
            await engine._do(fail)
        await collector.until(lambda: collector.reconnects == 1)
        assert await engine.publish(publication("chat", "1")) == START


async def test_what_is_no_publication_is_passed_over(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with started(path) as (engine, collector):
        await engine.subscribe("chat")
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                "INSERT INTO hubbub_publications (namespace, channel, offset, time, expires, packed)"
                " VALUES ('hubbub', 'chat', 0, 0, 9e9, x'c1')"
            )
        await engine.publish(publication("chat", "1"))
        await collector.heard("chat", ["1"])
    assert "Expected a publication" in caplog.text


# Pruning


async def test_what_is_not_needed_any_more_is_deleted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEEP", 0.3)
    monkeypatch.setattr(store_module, "IDEMPOTENCY_WINDOW", 0.3)
    monkeypatch.setattr(store_module, "STREAM_TTL", 0.3)
    monkeypatch.setattr(worker_module, "PRUNE_EVERY", 0.05)
    monkeypatch.setattr(worker_module, "FORGET_EVERY", 0.05)

    async with started(path) as (engine, _):
        for number in range(10):
            await engine.publish(publication("plain", str(number)), None, f"key {number}")
            await engine.publish(publication("long", str(number)), History(size=3, ttl=3600))
            await engine.publish(publication("short", str(number)), History(size=100, ttl=0.1))
        await found(
            path,
            "SELECT channel, offset FROM hubbub_publications ORDER BY id",
            [("long", n) for n in (8, 9, 10)],
        )
        await found(path, "SELECT * FROM hubbub_keys", [])
        await found(path, "SELECT channel FROM hubbub_streams", [("long",)])
        assert [each.offset for each in (await engine.history("long")).publications] == [8, 9, 10]
        # A stream that was forgotten begins anew.
        assert (await engine.publish(publication("short", "again"), HISTORY)).offset == 1


async def test_pruning_keeps_up_with_many_publications(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEEP", 0.1)
    monkeypatch.setattr(store_module, "PRUNED", 5)
    async with started(path) as (engine, _):
        for number in range(400):
            history = History(size=10, ttl=3600) if number % 2 else None
            channel = "kept" if history else "plain"
            await engine.publish(publication(channel, str(number)), history)
        # At five a second, the rest would take more than a minute.
        await found(path, "SELECT count(*) FROM hubbub_publications", [(10,)])


async def test_a_stream_that_is_read_is_not_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEEP", 0.2)
    monkeypatch.setattr(store_module, "STREAM_TTL", 0.4)
    monkeypatch.setattr(worker_module, "PRUNE_EVERY", 0.05)
    monkeypatch.setattr(worker_module, "FORGET_EVERY", 0.05)
    async with started(path) as (engine, _):
        position = await engine.publish(publication("chat", "1"), History(size=3, ttl=0.1))
        for _ in range(20):
            await asyncio.sleep(0.05)
            assert (await engine.history("chat")).position == position


async def test_a_new_ttl_holds_for_what_is_there_already(path: Path) -> None:
    async with started(path) as (engine, _):
        await engine.publish(publication("chat", "1"), History(size=3, ttl=100))
        await engine.subscribe("chat", History(size=3, ttl=1000))
        await engine.publish(publication("chat", "2"))
    assert rows(path, "SELECT round(expires - time) FROM hubbub_publications") == [(1000.0,), (1000.0,)]


#: What a process does that publishes and ends: ``hubbub publish`` in a cron job, say.
SHORT_LIVED = """
import asyncio, sys
from hubbub.engines import engine_for
from hubbub.testing.engine_contract import Collector, publication
from hubbub.engines.sqlite import store
from hubbub.core.history import History

async def main(url, count):
    store.KEEP = 0.0
    engine = engine_for(url)
    await engine.start(Collector())
    texts = map(str, range(count))
    await asyncio.gather(*(engine.publish(publication("chat", text), History(size=10)) for text in texts))
    await engine.stop()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def publish_and_end(path: Path, count: int) -> None:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SHORT_LIVED, f"sqlite:///{path}", str(count)
    )
    async with asyncio.timeout(DEADLINE):
        assert await running.wait() == 0


async def test_what_processes_that_have_ended_published_too_much_is_deleted_by_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "TRIMMED", 0)
    # Another stream comes before it, and one look is not enough.
    monkeypatch.setattr(store_module, "SWEPT", 1)
    monkeypatch.setattr(worker_module, "PRUNE_EVERY", 0.05)
    async with started(path) as (engine, _):
        await engine.publish(publication("a", "1"), HISTORY)
        # None of these processes sees a row that is old enough to be deleted.
        monkeypatch.setattr(store_module, "KEEP", 3600.0)
        with closing(store_module.Store(str(path), "hubbub")) as store, store.transaction():
            for number in range(2000):
                store.publish(publication("chat", str(number)), History(size=10), None, store.now())
        assert rows(path, "SELECT count(*) FROM hubbub_publications WHERE channel = 'chat'") == [(2000,)]
        monkeypatch.setattr(store_module, "KEEP", 0.0)
        await found(
            path,
            "SELECT count(*), max(offset) FROM hubbub_publications WHERE channel = 'chat'",
            [(10, 2000)],
        )


async def test_processes_that_publish_and_end_leave_no_more_than_the_history(path: Path) -> None:
    for _ in range(3):
        await publish_and_end(path, 100)
    # Of the last transaction, rows are as young as the transaction.
    (count,) = rows(path, "SELECT count(*) FROM hubbub_publications")[0]
    assert count < 150
    assert rows(path, "SELECT top FROM hubbub_streams") == [(300,)]


def test_one_publish_deletes_a_bounded_number_of_rows(path: Path) -> None:
    clock = Clock()
    with closing(store_module.Store(str(path), "hubbub", clock)) as store:

        def publish(count: int) -> None:
            for number in range(count):
                with store.transaction():
                    store.publish(publication("chat", str(number)), History(size=10), None, store.tick())

        publish(100)
        assert rows(path, "SELECT count(*) FROM hubbub_publications") == [(100,)]
        clock.now += store_module.KEEP + 1
        publish(1)
        assert rows(path, "SELECT min(offset) FROM hubbub_publications") == [(1 + store_module.TRIMMED,)]
        publish(20)
        # What is younger than a minute is kept for processes that are behind.
        assert rows(path, "SELECT min(offset) FROM hubbub_publications") == [(101,)]


# The clock


class Clock:
    """A clock that is set by hand."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_clock_that_was_ahead_stretches_nothing(path: Path) -> None:
    clock, jump = Clock(), 86_400.0
    short, store = History(size=10, ttl=100), store_module.Store(str(path), "hubbub", clock)
    with closing(store):

        def published(text: str, key: str) -> Position:
            with store.transaction():
                return store.publish(publication("chat", text), short, key, store.tick())

        def kept() -> list[bytes]:
            return [each.data for each in store.history("chat", None, None, False, store.now()).publications]

        clock.now += jump
        published("1", "key")
        with store.transaction():
            entered = [PresenceChange("chat", "a", b"")]
            assert store.presence.update("lease", 100, entered, True, store.tick())
        clock.now -= jump
        # Another process, which has not seen the jump.
        store.close()
        store = store_module.Store(str(path), "hubbub", clock)
        # What was published just now counts from now on.
        assert published("1", "key").offset == 1
        assert kept() == [b"1"]
        clock.now += 60
        published("2", "other key")
        clock.now += 50
        assert kept() == [b"2"]
        with store.transaction():
            assert store.presence.expire(store.tick()) == [PresenceChange("chat", "a", None)]
        clock.now += 200
        assert published("1", "key").offset == 3
        clock.now += 101
        assert store.has_to_prune(store.now())
        with store.transaction():
            store.prune(store.tick())
        assert rows(path, "SELECT offset FROM hubbub_publications") == []


async def test_clients_are_told_the_time_of_the_machine(path: Path) -> None:
    clock = Clock()
    with closing(store_module.Store(str(path), "hubbub", clock)) as store:
        for now in (2_000_000.0, 1_000_000.0, 1_000_001.0):
            clock.now = now
            with store.transaction():
                store.publish(publication("chat", "1"), HISTORY, None, store.tick())
        page = store.history("chat", None, None, False, store.now())
        assert [each.time for each in page.publications] == [2_000_000.0, 1_000_000.0, 1_000_001.0]


async def test_whoever_was_away_for_long_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "KEEP", 0.0)
    async with started(path) as (engine, collector):
        await engine.subscribe("chat")
        await engine.publish(publication("chat", "1"))
        await collector.until(lambda: collector.reconnects > 0)


# Load


async def test_a_loop_that_is_slow_is_handed_a_piece_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "MAX_NEWS", 10)
    async with started(path) as (engine, collector), started(path) as (other, _):
        await engine.subscribe("chat", HISTORY)
        texts = [str(number) for number in range(1000)]
        await asyncio.gather(*(other.publish(publication("chat", text)) for text in texts))
        await collector.heard("chat", texts)


async def test_nothing_is_done_for_those_who_gave_up(path: Path) -> None:
    async with started(path) as (engine, _):
        with locked(path):
            publishing = asyncio.create_task(engine.publish(publication("chat", "never"), HISTORY))
            await asyncio.sleep(0.05)
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
        assert (await engine.publish(publication("chat", "1"), HISTORY)).offset == 1


async def test_a_subscription_that_cannot_be_declared_again_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(path) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        with locked(path):
            monkeypatch.setattr(engine_module, "DEADLINE", 0.1)
            with pytest.raises(EngineUnavailable):
                await engine.subscribe("chat", HISTORY)
            with pytest.raises(EngineUnavailable):
                await engine.subscribe("never")
            monkeypatch.undo()
        for channel in ("never", "chat"):
            await engine.publish(publication(channel, "1"))
        await collector.heard("chat", ["1"])
        assert collector.texts("never") == []


#: Prints what its memory has grown by at the most, in MiB, once it hears something in "chat".
LISTENER = """
import asyncio, resource, sys
from hubbub.engines import engine_for
from hubbub.testing.engine_contract import HISTORY, Collector

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def main(url):
    engine, collector = engine_for(url), Collector()
    await engine.start(collector)
    await engine.subscribe("chat", HISTORY)
    before = peak()
    print("ready", flush=True)
    await collector.until(lambda: collector.texts("chat"))
    print(peak() - before, flush=True)
    await engine.stop()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in other units elsewhere")
async def test_a_process_that_is_behind_does_not_load_channels_it_has_no_subscriber_in(path: Path) -> None:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LISTENER, f"sqlite:///{path}", stdout=PIPE
    )
    try:
        async with asyncio.timeout(DEADLINE * 3):
            assert await line(running) == "ready"
            running.send_signal(signal.SIGSTOP)
            async with started(path) as (engine, _):
                for number in range(80):
                    await engine.publish(publication("other", f"{number:02}" * 800_000))
                await engine.publish(publication("chat", "the end"), HISTORY)
            running.send_signal(signal.SIGCONT)
            # They are 120 MiB.
            assert int(await line(running)) < 40
            assert await running.wait() == 0
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


async def test_what_is_handed_over_at_once_is_bounded_in_bytes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[list[int]] = []
    flush = worker_module.Worker._flush

    def recorded(worker: worker_module.Worker, news: Any = None) -> None:
        if news:
            pieces.append([len(each.data) for each in news])
        flush(worker, news)

    monkeypatch.setattr(worker_module.Worker, "_flush", recorded)
    monkeypatch.setattr(worker_module, "MAX_NEWS_BYTES", 10_000)
    sizes = [4000, 4000, 4000, 50_000, 1, 1, 9000]
    async with started(path) as (engine, collector), started(path) as (other, _):
        await engine.subscribe("chat")
        with locked(path):
            publishing = [
                asyncio.create_task(other.publish(publication("chat", "x" * size))) for size in sizes
            ]
            await asyncio.sleep(0)
        await asyncio.gather(*publishing)
        await collector.until(lambda: len(collector.publications) == len(sizes))
        assert [len(each.data) for each in collector.publications] == sizes
    assert len(pieces) > 1
    assert all(len(piece) == 1 or sum(piece) < 10_000 for piece in pieces)
