"""Publish as fast as a peer's library can, in one process without clients.

Usage: publishing.py MODULE AT_ONCE WARMUP SECONDS SIZE. ``MODULE`` is the peer's; ``AT_ONCE`` is the
number of publications under way at a time. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from time import perf_counter

import uvloop


async def main(module: str, at_once: int, warmup: float, seconds: float, size: int) -> None:
    text = "bench:".ljust(size, "x")
    async with import_module(module).publishing() as publish:
        before = await publish_for(warmup, publish, text, at_once)
        begin = perf_counter()
        took = await publish_for(seconds, publish, text, at_once)
        lasted = perf_counter() - begin
    took.sort()
    print(
        json.dumps(
            {
                "published": len(before) + len(took),
                "per_second": len(took) / lasted,
                "p50_ms": took[len(took) // 2] * 1000,
                "p99_ms": took[len(took) * 99 // 100] * 1000,
            }
        )
    )


async def publish_for(
    seconds: float, publish: Callable[[str], Awaitable[object]], text: str, at_once: int
) -> list[float]:
    """Publish for some seconds, and return the seconds that each publication took."""
    took = []
    until = perf_counter() + seconds

    async def keep_publishing() -> None:
        begin = perf_counter()
        while begin < until:
            await publish(text)
            end = perf_counter()
            took.append(end - begin)
            begin = end

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(keep_publishing())
    return took


if __name__ == "__main__":
    module, *numbers = sys.argv[1:]
    at_once, warmup, seconds, size = numbers
    uvloop.run(main(module, int(at_once), float(warmup), float(seconds), int(size)))
