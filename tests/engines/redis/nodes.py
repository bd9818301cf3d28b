"""Helpers for tests of engines on a Redis server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from redis import Redis

from hubbub.core.history import History
from hubbub.core.publication import Position
from hubbub.engines import engine_for
from hubbub.engines.redis import RedisEngine
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import Collector, publication
from tests.clients import DEADLINE


@asynccontextmanager
async def running(url: str, namespace: str = "hubbub") -> AsyncIterator[tuple[RedisEngine, Collector]]:
    engine, collector = engine_for(url, namespace), Collector()
    assert isinstance(engine, RedisEngine)
    await engine.start(collector)
    try:
        yield engine, collector
    finally:
        await engine.stop()


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` is true, which is called in this thread."""
    await Collector().until(lambda: bool(condition()))


async def rejection(engine: RedisEngine, channel: str = "chat", history: History | None = None) -> str:
    """Publish, and return the message of the error."""
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(EngineUnavailable) as info:
            await engine.publish(publication(channel, "rejected"), history)
    return str(info.value)


def is_caught_up(client: Redis) -> bool:
    """Whether the only replica has all data of its primary."""
    state: Any = client.info("replication")
    return bool(state["slave0"]["offset"] == state["master_repl_offset"])


async def accepted(engine: RedisEngine, text: str, history: History | None = None) -> Position:
    """Publish, again and again until the engine accepts it."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(EngineUnavailable):
                return await engine.publish(publication("chat", text), history)
