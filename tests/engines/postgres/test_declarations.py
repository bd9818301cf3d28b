"""Histories that the database has lost are declared again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from hubbub import Publisher
from hubbub.core.publication import START, Position
from hubbub.engines.postgres import PostgresEngine
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.clients import DEADLINE
from tests.engines.postgres.nodes import asyncpg_connection

DROPPED = 'DROP SCHEMA "{}" CASCADE'
EMPTIED = 'TRUNCATE "{0}".streams, "{0}".publications, "{0}".keys'


@pytest.mark.parametrize("loss", [DROPPED, EMPTIED])
async def test_lost_histories_are_declared_again(
    loss: str, node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    """Publishers that do not declare them rely on it."""
    engine, collector = node
    channels = [f"room:{number}" for number in range(20)]
    before = [(await engine.subscribe(channel, HISTORY)).position for channel in channels]
    await engine.subscribe("plain")
    with Publisher(postgres_url, namespace=namespace) as publisher:
        for channel in channels:
            position = await asyncio.to_thread(publisher.publish, channel, "1")
            assert position.offset == 1
            await collector.heard(channel, ["1"])
        await other.execute(loss.format(namespace))
        await collector.until(lambda: collector.reconnects == 1)
        tops = await engine.tops([*channels, "plain"])
        assert all(top.position.epoch for top in tops[:-1])
        assert tops[-1].position == START
        for channel, (_, epoch) in zip(channels, before, strict=True):
            position = await publish_from_a_thread(publisher, channel, "2")
            assert position.offset == 1
            assert position.epoch not in ("", epoch)
            await collector.heard(channel, ["1", "2"])


async def test_a_history_that_is_lost_while_its_channel_is_locked_is_declared_later(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat", HISTORY)
    await engine.publish(publication("chat", "1"), HISTORY)
    async with asyncpg_connection(postgres_url) as using:
        await using.execute(f'DELETE FROM "{engine.namespace}".streams')
        await engine.publish_in(publication("chat", "2"), None, None, using)
    await collector.until(lambda: collector.reconnects >= 1)
    async with asyncpg_connection(postgres_url) as using:
        await other.execute(f'DELETE FROM "{engine.namespace}".streams')
        assert await engine.publish_in(publication("chat", "3"), None, None, using) == START
        reconnects = collector.reconnects
        await collector.until(lambda: collector.reconnects > reconnects)
        assert (await engine.tops(["chat"]))[0].position == START
    reconnects = collector.reconnects
    await collector.until(lambda: collector.reconnects > reconnects)
    assert (await engine.tops(["chat"]))[0].position.epoch


async def publish_from_a_thread(publisher: Publisher, channel: str, text: str) -> Position:
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(EngineUnavailable):
                return await asyncio.to_thread(publisher.publish, channel, text)
            await asyncio.sleep(0.05)
