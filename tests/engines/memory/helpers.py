"""Helpers of the tests of the memory engine."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from hubbub.core.history import History
from hubbub.core.publication import START, Publication
from hubbub.engines.memory import MemoryEngine
from hubbub.testing.engine_contract import DEADLINE

SHORT, LONG = History(size=100, ttl=10), History(size=100, ttl=1_000_000)


class Payload:
    """Stands for the bytes of a publication; a weak reference shows whether it is still kept."""


async def publish_payload(engine: MemoryEngine, channel: str, history: History) -> WeakSet[Any]:
    """Publish; return a set that is empty once the engine has dropped the publication."""
    payload: Any = Payload()
    await engine.publish(Publication(channel, payload, "binary"), history)
    return WeakSet([payload])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def forgotten(engine: MemoryEngine, channel: str) -> None:
    """Wait until the engine has forgotten ``channel``. Reading its top is no use of the stream."""
    async with asyncio.timeout(DEADLINE):
        while await engine.tops([channel]) != [(START, "")]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@contextmanager
def grows_by_less_than(size: int) -> Iterator[None]:
    """Check that the block allocates less than ``size`` bytes that are still in use at its end."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
        assert grown < size
    finally:
        tracemalloc.stop()
