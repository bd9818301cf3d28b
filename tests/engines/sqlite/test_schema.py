"""The schema: its versions, and upgrades while the file is in use."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from hubbub.core.publication import Position, pack
from hubbub.engines.base import PresenceChange
from hubbub.engines.sqlite import schema
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.sqlite.helpers import make, refused, rows


@pytest.mark.parametrize("version", [99, -1])
async def test_an_unknown_version_is_refused(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    await refused(path, f"it has schema version {version}, but .* knows 3 and earlier ones")
    assert rows(path, "PRAGMA user_version") == [(version,)]


class OldWorker:
    """A process of an earlier version, with the statements by which it publishes."""

    def __init__(self, path: Path, version: int) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        for step in range(1, version + 1):
            for statement in schema.STEPS[step]:
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
async def test_a_file_of_an_earlier_version_is_upgraded_while_it_is_in_use(path: Path, version: int) -> None:
    old = OldWorker(path, version)
    with closing(old.connection):
        old.publish("1", 1, "key")
        # All of them find the earlier version.
        engines = [make(path) for _ in range(5)]
        collector = Collector()
        await asyncio.gather(*(engine.start(collector) for engine in engines))
        assert rows(path, "PRAGMA user_version") == [(schema.VERSION,)]
        for engine in engines:
            assert [each.data for each in (await engine.history("chat")).publications] == [b"1"]
            assert await engine.publish(publication("chat", "1"), HISTORY, "key") == (1, "old")
        # Earlier versions did not save the id.
        assert await engines[0].subscribe("chat", HISTORY) == ((1, "old"), "")
        assert await engines[0].update_presence("lease", 60, [PresenceChange("chat", "a", b"")], begin=True)
        assert await engines[1].presence("chat") == {"a": b""}
        newest = publication("chat", "2")
        assert await engines[1].publish(newest) == (2, "old")
        assert await engines[2].tops(["chat"]) == [((2, "old"), newest.id)]
        # A process of the earlier version, which has the file open, still publishes.
        old.publish("3", 3)
        assert await engines[2].tops(["chat"]) == [((3, "old"), "")]
        await collector.heard("chat", ["2", "3"])
        assert (collector.disconnects, collector.reconnects) == (0, 0)
        await asyncio.gather(*(engine.stop() for engine in engines))


async def test_an_upgrade_is_made_in_full_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(schema.STEPS, 2, [*schema.STEPS[2], "CREATE TABLE hubbub_streams (a)"])
    await refused(path, "hubbub_streams already exists")
    assert rows(path, "PRAGMA user_version") == [(0,)]
    assert rows(path, "SELECT name FROM sqlite_schema") == []
