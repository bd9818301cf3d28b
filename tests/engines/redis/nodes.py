"""Engines around a Redis server, and what is done with them."""

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
    """Ask, in this thread, until it is so."""
    await Collector().until(lambda: bool(condition()))


async def close_for(engine: RedisEngine, channel: str = "chat", history: History | None = None) -> str:
    """Why a publication is not accepted."""
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(EngineUnavailable) as info:
            await engine.publish(publication(channel, "refused"), history)
    return str(info.value)


def is_caught_up(client: Redis) -> bool:
    """Whether the only replica has everything that its primary has."""
    state: Any = client.info("replication")
    return bool(state["slave0"]["offset"] == state["master_repl_offset"])


async def accepted(engine: RedisEngine, text: str, history: History | None = None) -> Position:
    """Publish, as often as it takes."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(EngineUnavailable):
                return await engine.publish(publication("chat", text), history)
