"""Channels that a transaction has locked delay no other channel."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from hubbub.engines.postgres import PostgresEngine, requests
from hubbub.engines.postgres import engine as module
from hubbub.engines.postgres.locks import FIRST, LEAST, ROUND, Attempts, Blocked, Locks
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.postgres.nodes import (
    asyncpg_connection,
    enters,
    publish_when_possible,
    started,
    until,
    with_parameters,
)


@pytest.mark.parametrize("pool_size", [1, 2, 10])
async def test_an_open_transaction_delays_its_own_channels_only(
    pool_size: int, postgres_url: str, namespace: str, other: Any
) -> None:
    blocked = [f"blocked:{number}" for number in range(30)]
    async with started(with_parameters(postgres_url, f"pool_size={pool_size}"), namespace) as (
        engine,
        collector,
    ):
        await engine.subscribe("free", HISTORY)
        async with asyncpg_connection(postgres_url) as using:
            for channel in blocked:
                await engine.publish_in(publication(channel, "1"), None, None, using)
            waiting = [asyncio.create_task(publish_when_possible(engine, each, "2")) for each in blocked]
            await until(other, "EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
            for number in range(1, 11):
                assert (await engine.publish(publication("free", str(number)), HISTORY)).offset == number
                assert (await engine.history("free")).position.offset == number
                assert await engine.update_presence("lease", 60, [enters("free", str(number))], number == 1)
                await engine.subscribe(f"free:{number}", HISTORY)
            await collector.heard("free", [str(number) for number in range(1, 11)])
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)


async def test_publications_that_wait_for_a_transaction_are_accepted_in_order(
    postgres_url: str, namespace: str, other: Any
) -> None:
    async with started(postgres_url, namespace) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        async with asyncpg_connection(postgres_url) as using:
            await engine.publish_in(publication("chat", "0"), HISTORY, None, using)
            texts = [str(number) for number in range(1, 251)]
            waiting = [asyncio.create_task(engine.publish(publication("chat", text))) for text in texts]
            attempt = (
                "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query_start > {})"
            )
            await until(other, attempt.format("'-infinity'"))
            # The first attempt fails, and so does the second: the transaction sees another one begin.
            for _ in range(2):
                begun = await other.fetchval("SELECT clock_timestamp()::text")
                await until(other, attempt.format(f"'{begun}'"))
        positions = await asyncio.gather(*waiting)
        assert [position.offset for position in positions] == list(range(2, 252))
        await collector.heard("chat", ["0", *texts])


async def test_other_requests_to_a_blocked_channel_fail_in_time(
    postgres_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "ANSWER_TIMEOUT", 1.0)
    async with started(postgres_url, namespace) as (engine, _):
        await engine.publish(publication("chat", "1"), HISTORY)
        async with asyncpg_connection(postgres_url) as using:
            await engine.publish_in(publication("chat", "2"), HISTORY, None, using)
            await engine.publish_in(publication("plain", "2"), None, None, using)
            with pytest.raises(EngineUnavailable, match="still open"):
                await engine.remove_history("chat")
            with pytest.raises(EngineUnavailable, match="still open"):
                await engine.subscribe("plain", HISTORY)
        assert (await engine.history("chat")).position.offset == 2
        await engine.remove_history("chat")
        assert (await engine.history("chat")).position.offset == 0
        assert (await engine.subscribe("plain", HISTORY)).position.epoch


async def test_publishing_waits_for_a_transaction_no_longer_than_the_timeout(
    node: tuple[PostgresEngine, Collector], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, collector = node
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 1.0)
    await engine.subscribe("chat")
    await engine.subscribe("other")
    async with asyncpg_connection(postgres_url) as using:
        await engine.publish_in(publication("chat", "1"), None, None, using)
        with pytest.raises(EngineUnavailable, match="still open"):
            await engine.publish(publication("chat", "2"))
        # Other channels are not affected.
        await engine.publish(publication("other", "1"))
    await engine.publish(publication("chat", "3"))
    await collector.until(lambda: "3" in collector.texts("chat"))
    # The publication that raised may have been accepted at the moment in which it was given up.
    assert collector.texts("chat") in (["1", "3"], ["1", "2", "3"])


async def attempt(attempts: Attempts, is_blocked: bool) -> float:
    waited = 0.0
    with suppress(Blocked):
        async with attempts.turn() as patience:
            waited = patience
            if is_blocked:
                raise Blocked
    return waited


async def test_the_more_channels_are_blocked_the_shorter_each_attempt_waits() -> None:
    locks = Locks(pool_size=10)
    several = [locks.attempts() for _ in range(100)]
    assert await attempt(several[0], is_blocked=True) == FIRST
    assert await attempt(several[0], is_blocked=True) == ROUND
    for each in several[1:]:
        assert LEAST <= await attempt(each, is_blocked=True) < FIRST
    assert LEAST <= await attempt(several[0], is_blocked=True) < FIRST
    # Attempts that have succeeded or were given up do not count.
    for each in several[:50]:
        assert await attempt(each, is_blocked=False) > 0
    for each in several[50:]:
        with each:
            pass
    assert await attempt(locks.attempts(), is_blocked=False) == FIRST
