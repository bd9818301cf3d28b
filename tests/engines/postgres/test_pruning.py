"""Pruning: removing expired rows and unused streams."""

from __future__ import annotations

from typing import Any

import pytest

from hubbub.core.history import History
from hubbub.engines.postgres import PostgresEngine, pruning, schema
from hubbub.engines.postgres import engine as module
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.postgres.nodes import asyncpg_connection, started, until


async def test_expired_rows_are_removed_in_steps(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    engine, _ = node
    schema = f'"{namespace}"'
    for number in range(10):
        await engine.publish(publication("plain", str(number)), None, f"key {number}")
    await engine.publish(publication("kept", "1"), HISTORY)
    async with asyncpg_connection(postgres_url) as using:
        await engine.publish_in(publication("late", "1"), None, None, using)
        seen = await other.fetchval("SELECT pg_current_snapshot()::text")
    # "late" was published before the snapshot, but committed after it: nodes had less time to read it.
    await other.execute(
        f"UPDATE {schema}.publications SET expires = now() - interval '1 min' WHERE channel <> 'kept'"
    )
    # An update would be another transaction's.
    await other.execute(f"UPDATE {schema}.publications SET expires = expires")

    async def prune(limit: int) -> int:
        count: int = await other.fetchval(f"SELECT {schema}.prune($1::text::pg_snapshot, $2)", seen, limit)
        return count

    assert await prune(6) == 6
    assert await prune(6) == 4
    assert await prune(6) == 0
    assert {row["channel"] for row in await other.fetch(f"SELECT * FROM {schema}.publications")} == {
        "kept",
        "late",
    }
    await other.execute(f"UPDATE {schema}.keys SET expires = now() - interval '1 min'")
    assert await prune(100) == 10
    # After an hour, "late" is removed regardless of the snapshot.
    await other.execute(f"UPDATE {schema}.publications SET expires = now() - interval '2 hours'")
    assert await prune(100) == 2


async def test_publishing_removes_publications_beyond_the_size_of_the_history(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    for number in range(100):
        await engine.publish(publication("chat", str(number)), History(size=5, ttl=60))
    assert await other.fetchval(f'SELECT count(*) FROM "{namespace}".publications') < 25


async def test_a_started_engine_prunes(
    monkeypatch: pytest.MonkeyPatch, other: Any, postgres_url: str, namespace: str
) -> None:
    monkeypatch.setattr(pruning, "PRUNE", 0.1)
    for each in (pruning, schema):
        monkeypatch.setattr(each, "HANDOVER", 0.1)
    monkeypatch.setattr(pruning, "PRUNE_STREAMS", 0.1)
    async with started(postgres_url, namespace) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        await engine.publish(publication("plain", "1"))
        await until(other, f'NOT EXISTS (SELECT FROM "{namespace}".publications)')
        await other.execute(f"""UPDATE "{namespace}".streams SET used = now() - interval '1 day'""")
        await until(other, f"""NOT EXISTS (SELECT FROM "{namespace}".streams WHERE channel = 'plain')""")
        # The stream that is subscribed to stays; the other one begins again.
        assert (await engine.history("chat")).position.epoch
        await engine.subscribe("plain")
        await engine.publish(publication("plain", "2"))
        await collector.heard("plain", ["2"])


async def test_the_newest_publication_has_an_id_as_long_as_it_is_kept(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = node
    monkeypatch.setattr(module, "TOPS", 2)
    published = [publication(channel, "1") for channel in ("kept", "expired", "also kept")]
    positions = [await engine.publish(each, History(size=10, ttl=600)) for each in published]
    await other.execute(
        f"""UPDATE "{namespace}".publications SET time = time - interval '1 hour' WHERE channel = 'expired'"""
    )
    ids = [published[0].id, "", published[2].id]
    tops = await engine.tops([each.channel for each in published])
    assert tops == list(zip(positions, ids, strict=True))
    assert await engine.subscribe("expired") == (positions[1], "")
