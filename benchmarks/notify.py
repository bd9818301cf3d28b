"""PostgreSQL with notifications and without: ``python -m benchmarks.notify [SECONDS]`` prints a table.

The two are measured in turns, on one server, whose commits are on the disk when they return. The table has
the median of the turns.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack
from itertools import count
from statistics import median, quantiles

from benchmarks.process import cores
from benchmarks.stores import store
from hubbub.core.publication import Publication, publication_ids
from hubbub.engines import Engine, engine_for

#: Turns, channels at a time, and seconds between two publications whose latency is measured.
TURNS, CHANNELS, PAUSE = 3, 100, 0.03

_ids = publication_ids()


class Node:
    """Records the arrival times of publications."""

    def __init__(self) -> None:
        self.arrivals: asyncio.Queue[float] = asyncio.Queue()

    def on_publication(self, publication: Publication) -> None:
        self.arrivals.put_nowait(time.perf_counter())

    def on_disconnect(self, reason: str) -> None:
        pass

    def on_reconnect(self) -> None:
        pass


async def rate(engine: Engine, channels: int, seconds: float) -> float:
    """Return the publications a second to ``channels`` channels at a time, one by one to each."""
    end = time.perf_counter() + seconds
    published = count()

    async def publish(channel: str) -> None:
        while time.perf_counter() < end:
            await engine.publish(Publication(channel, b"x" * 100, "text", id=next(_ids)))
            next(published)

    start = time.perf_counter()
    await asyncio.gather(*(publish(f"rate:{number}") for number in range(channels)))
    return next(published) / (time.perf_counter() - start)


async def latency(engine: Engine, other: Node, seconds: float) -> list[float]:
    """Return the median and the 99th percentile of the latency between two nodes, in milliseconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        await engine.publish(Publication("way", b"x" * 100, "text", id=next(_ids)))
        times.append((await other.arrivals.get() - start) * 1000)
        await asyncio.sleep(PAUSE)
    steps = quantiles(times, n=100)
    return [steps[49], steps[98]]


async def turn(url: str, seconds: float) -> list[float]:
    """Measure everything once."""
    async with AsyncExitStack() as stack:
        nodes = []
        for _ in range(2):
            engine, node = engine_for(url), Node()
            await engine.start(node)
            stack.push_async_callback(engine.stop)
            nodes.append((engine, node))
        (engine, _), (listening, node) = nodes
        await listening.subscribe("way")
        rates = [await rate(engine, channels, seconds) for channels in (1, CHANNELS)]
        return [*rates, *await latency(engine, node, seconds)]


async def main(seconds: float) -> None:
    server, load = cores()
    os.sched_setaffinity(0, {load})
    with store("postgres", server) as url:
        results: dict[str, list[list[float]]] = {"on": [], "off": []}
        for _ in range(TURNS):
            for notify, turns in results.items():
                turns.append(await turn(f"{url}?notify={notify}", seconds))
    titles = [
        "publications/s",
        f"to {CHANNELS} channels at a time",
        "ms to another node, median",
        "99th percentile",
    ]
    print(f"{'':10}" + "".join(f"{title:>30}" for title in titles))
    for notify, turns in results.items():
        print(
            f"notify={notify:3}" + "".join(f"{median(column):30,.1f}" for column in zip(*turns, strict=True))
        )


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0))
