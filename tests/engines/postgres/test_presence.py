"""Presence: several who remove the same, enter the same, or die on the way."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from hubbub.engines.base import PresenceChange
from hubbub.engines.postgres import PostgresEngine
from hubbub.testing.engine_contract import Collector
from tests.clients import DEADLINE
from tests.engines.postgres.nodes import (
    enters,
    leaves,
    started,
    until,
)


async def test_of_one_who_dies_while_removing_a_lease_another_takes_over(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    assert await engine.update_presence("one", 0, [enters("chat", "a")], begin=True)
    transaction = other.transaction()
    await transaction.start()
    assert len(await other.fetch(f'SELECT * FROM "{namespace}".expire_presence(-1)')) == 1
    # It is at it, and nobody waits for it.
    assert list(await engine.expire_presence(-1)) == []
    await transaction.rollback()
    assert list(await engine.expire_presence(-1)) == [leaves("chat", "a")]


async def test_a_lease_that_is_being_renewed_is_not_removed(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    assert await engine.update_presence("one", 0, [enters("chat", "a")], begin=True)
    async with other.transaction():
        await other.execute(
            f"""SELECT "{namespace}".update_presence('one', 60, false, '{{}}', '{{}}', '{{}}')"""
        )
        assert list(await engine.expire_presence(-1)) == []
    assert list(await engine.expire_presence(0)) == []
    assert list(await engine.presence("chat")) == ["a"]


async def test_who_enters_again_while_the_old_lease_is_removed_stays(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    entered = [enters("chat", name) for name in "abc"]
    assert await engine.update_presence("old", 0, entered, begin=True)
    async with other.transaction():
        await other.execute(
            f"""SELECT "{namespace}".update_presence('new', 60, true, '{{chat}}', '{{b}}', '{{new}}')"""
        )
        removing = asyncio.create_task(engine.expire_presence(-1))
        await until(other, "EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    assert sorted(await removing) == [leaves("chat", "a"), leaves("chat", "c")]
    assert await engine.presence("chat") == {"b": b"new"}


async def test_nobody_waits_for_somebody_who_waits_for_him(
    node: tuple[PostgresEngine, Collector], postgres_url: str, other: Any, namespace: str
) -> None:
    """The same connections come and go under leases of several nodes, which are removed meanwhile. PostgreSQL
    ends one of two that wait for each other with an error."""
    engine, _ = node
    keys = [(f"room:{room}", str(connection)) for room in range(10) for connection in range(10)]

    async def come_and_go(engine: PostgresEngine, name: str) -> None:
        random = Random(name)
        for number in range(25):
            changes = [
                PresenceChange(*key, name.encode() if random.random() < 0.7 else None)
                for key in random.sample(keys, 60)
            ]
            # Every other lease lapses at once.
            lease = f"{name}:{number}"
            assert await engine.update_presence(lease, 60 * (number % 2), changes[:30], begin=True)
            # It may have been removed already.
            await engine.update_presence(lease, 60 * (number % 2), changes[30:])

    async def remove(engine: PostgresEngine) -> None:
        for _ in range(50):
            await engine.expire_presence(0)

    async with asyncio.timeout(DEADLINE), started(postgres_url, namespace) as (second, _):
        await asyncio.gather(
            *(come_and_go(each, f"{number}") for number, each in enumerate([engine, second] * 3)),
            *(remove(each) for each in (engine, second)),
        )
        await engine.expire_presence(-1)
        left = await second.expire_presence(-60)
    assert left
    for table in ("leases", "presence"):
        assert await other.fetchval(f'SELECT count(*) FROM "{namespace}".{table}') == 0
