"""Presence: nodes that remove or enter the same connections concurrently, and one that crashes meanwhile."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from hubbub.engines.base import PresenceChange
from hubbub.engines.postgres import PostgresEngine
from hubbub.testing.engine_contract import Collector
from tests.clients import DEADLINE
from tests.engines.postgres.nodes import enters, leaves, started, until


async def test_another_node_completes_the_removal_of_a_node_that_crashes(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    assert await engine.update_presence("one", 0, [enters("chat", "a")], begin=True)
    transaction = other.transaction()
    await transaction.start()
    assert len(await other.fetch(f'SELECT * FROM "{namespace}".expire_presence(-1)')) == 1
    # The lease is locked, and other nodes do not wait for it.
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


async def test_a_connection_that_enters_under_a_new_lease_stays_while_the_old_one_is_removed(
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


async def test_concurrent_changes_do_not_deadlock(
    node: tuple[PostgresEngine, Collector], postgres_url: str, other: Any, namespace: str
) -> None:
    """The same connections enter and leave under leases of several nodes, which are removed meanwhile.

    PostgreSQL ends one of two transactions that wait for each other with an error.
    """
    engine, _ = node
    keys = [(f"room:{room}", str(connection)) for room in range(10) for connection in range(10)]

    async def enter_and_leave(engine: PostgresEngine, name: str) -> None:
        random = Random(name)
        for number in range(25):
            changes = [
                PresenceChange(*key, name.encode() if random.random() < 0.7 else None)
                for key in random.sample(keys, 60)
            ]
            # Half of the leases lapse at once.
            lease = f"{name}:{number}"
            assert await engine.update_presence(lease, 60 * (number % 2), changes[:30], begin=True)
            # The lease may have been removed already.
            await engine.update_presence(lease, 60 * (number % 2), changes[30:])

    async def remove(engine: PostgresEngine) -> None:
        for _ in range(50):
            await engine.expire_presence(0)

    async with asyncio.timeout(DEADLINE), started(postgres_url, namespace) as (second, _):
        await asyncio.gather(
            *(enter_and_leave(each, f"{number}") for number, each in enumerate([engine, second] * 3)),
            *(remove(each) for each in (engine, second)),
        )
        await engine.expire_presence(-1)
        left = await second.expire_presence(-60)
    assert left
    for table in ("leases", "presence"):
        assert await other.fetchval(f'SELECT count(*) FROM "{namespace}".{table}') == 0
