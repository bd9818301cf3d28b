"""Reading: the order of a channel, and that no publication is missing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from hubbub.core.history import History
from hubbub.engines.postgres import PostgresEngine, reader
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.postgres.nodes import RollBack, asyncpg_connection, started, until


async def test_the_order_of_a_channel_is_the_order_of_commits(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str
) -> None:
    engine, collector = node
    for channel, history in (("kept", HISTORY), ("plain", None)):
        await engine.subscribe(channel, history)
        async with asyncpg_connection(postgres_url) as using:
            await engine.publish_in(publication(channel, "1"), history, None, using)
            # A publication through the engine waits for the transaction.
            waiting = asyncio.create_task(engine.publish(publication(channel, "3"), history))
            await until(other, "EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
            await engine.publish_in(publication(channel, "2"), history, None, using)
            assert not waiting.done()
            assert collector.texts(channel) == []
        await waiting
        await collector.heard(channel, ["1", "2", "3"])


@pytest.mark.parametrize("history", [None, HISTORY])
async def test_no_publication_is_lost_when_a_transaction_that_began_later_commits_first(
    history: History | None,
    node: tuple[PostgresEngine, Collector],
    other: Any,
    postgres_url: str,
    namespace: str,
) -> None:
    engine, collector = node
    for channel in ("slow", "fast", "slower"):
        await engine.subscribe(channel, history)
    async with asyncpg_connection(postgres_url) as slower:
        await engine.publish_in(publication("slower", "1"), history, None, slower)
        async with asyncpg_connection(postgres_url) as slow:
            await engine.publish_in(publication("slow", "1"), history, None, slow)
            async with asyncpg_connection(postgres_url) as fast:
                await engine.publish_in(publication("fast", "1"), history, None, fast)
            await collector.heard("fast", ["1"])
            # Also if a node has polled meanwhile: without a notification, only a poll finds this.
            async with other.transaction():
                await other.execute("SET LOCAL hubbub.notify = off")
                await other.execute(f"""SELECT "{namespace}".publish('fast', '2')""")
            await collector.heard("fast", ["1", "2"])
            await engine.publish_in(publication("slow", "2"), history, None, slow)
        await collector.heard("slow", ["1", "2"])
        await engine.publish_in(publication("slower", "2"), history, None, slower)
    await collector.heard("slower", ["1", "2"])
    await collector.heard("fast", ["1", "2"])


@pytest.mark.parametrize("history", [None, HISTORY])
async def test_concurrent_transactions_lose_and_double_no_publication(
    history: History | None, node: tuple[PostgresEngine, Collector], postgres_url: str, namespace: str
) -> None:
    engine, collector = node
    channels = ["a", "b", "c"]
    for channel in channels:
        await engine.subscribe(channel, history)
    committed: dict[str, set[str]] = {channel: set() for channel in channels}

    async def work(worker: int) -> None:
        for number in range(20):
            mine = channels[worker % 3 :]
            text = f"{worker}:{number}"
            with suppress(RollBack):
                async with asyncpg_connection(postgres_url) as using:
                    for channel in mine:
                        await engine.publish_in(publication(channel, text), history, None, using)
                        await asyncio.sleep(0)
                    if number % 4 == 0:
                        raise RollBack
                for channel in mine:
                    committed[channel].add(text)

    async with started(postgres_url, namespace) as (second, second_collector):
        for channel in channels:
            await second.subscribe(channel, history)
        await asyncio.gather(*(work(worker) for worker in range(9)))
        total = sum(map(len, committed.values()))
        for each in (collector, second_collector):
            await each.until(lambda c=each: len(c.publications) >= total)  # type: ignore[misc]
            for channel in channels:
                assert len(each.texts(channel)) == len(committed[channel])
                assert set(each.texts(channel)) == committed[channel]
        assert all(collector.texts(channel) == second_collector.texts(channel) for channel in channels)


async def test_a_burst_larger_than_one_read_arrives_in_full(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    for channel in ("a", "z"):
        await engine.subscribe(channel)
    await other.execute(f"""SELECT "{namespace}".publish('a', n::text) FROM generate_series(1, 2500) n""")
    await other.execute(f"""SELECT "{namespace}".publish('z', '1')""")
    await collector.heard("z", ["1"])
    await collector.heard("a", [str(n) for n in range(1, 2501)])


async def test_large_publications_are_read_in_portions(
    monkeypatch: pytest.MonkeyPatch, node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    monkeypatch.setattr(reader, "READ_BYTES", 1000)
    engine, collector = node
    for channel in ("a", "b"):
        await engine.subscribe(channel)
    async with other.transaction():
        for channel in ("a", "b"):
            await other.execute(
                f"""SELECT "{namespace}".publish('{channel}', repeat(n::text, 700)) """
                "FROM generate_series(1, 9) n"
            )
    for channel in ("a", "b"):
        await collector.heard(channel, [str(n) * 700 for n in range(1, 10)])


async def test_a_publication_without_a_notification_is_found(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat")
    async with other.transaction():
        # As of a publication whose notification was lost.
        await other.execute(f"""SELECT "{namespace}".publish('elsewhere', '1')""")
        await other.execute(f"""
            INSERT INTO "{namespace}".streams (channel, sequence, base, epoch) VALUES ('chat', 5, 0, '');
            UPDATE "{namespace}".publications SET channel = 'chat', sequence = 5 WHERE channel = 'elsewhere'
        """)
    await collector.heard("chat", ["1"])
