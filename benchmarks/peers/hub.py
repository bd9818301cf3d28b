"""Hubbub: endpoints for one channel, an echo, many channels, and clients that resume."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, WebSocket

from hubbub import History, Hub, Position
from hubbub.core.history import HistoryPage

hub = Hub(os.environ.get("STORE", "memory://"))
if size := os.environ.get("HISTORY"):
    hub.channel("bench", history=History(size=int(size), ttl=3600))
app = FastAPI()
app.include_router(hub.router)


@app.websocket("/ws")
async def bench(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("bench")
        async for text in client.iter_text():
            await hub.publish("bench", text)


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        async for text in client.iter_text():
            await client.send_text(text)


channels: set[str] = set()


@app.websocket("/many/{channel}")
async def many(websocket: WebSocket, channel: str) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe(channel)
        channels.add(channel)
        async for text in client.iter_text():
            for each in channels:
                await hub.publish(each, text)


@asynccontextmanager
async def publishing() -> AsyncIterator[Callable[[str], Awaitable[Position]]]:
    async with hub:
        yield partial(hub.publish, "bench")


# Clients that resume


@app.websocket("/resume")
async def resume(websocket: WebSocket, offset: int | None = None, epoch: str = "") -> None:
    since = None if offset is None else Position(offset, epoch)
    async with hub.connection(websocket) as client:
        await client.subscribe("bench", since=since)
        async for _ in client.iter_text():
            pass


@app.post("/fill")
async def fill(count: int, size: int) -> dict[str, int | str]:
    """Publish ``count`` messages, and return the position before the first of them."""
    position = await hub.publish("bench", "before")
    for number in range(count):
        await hub.publish("bench", f"bench:{number:010}".ljust(size, "x"))
    return {"offset": position.offset, "epoch": position.epoch}


reads = 0


@app.get("/reads")
async def count() -> int:
    """Return how often the history was read from the engine."""
    return reads


def counted(
    history: Callable[..., Awaitable[HistoryPage]],
) -> Callable[..., Coroutine[Any, Any, HistoryPage]]:
    async def count_and_read(*args: object, **options: object) -> HistoryPage:
        global reads
        reads += 1
        return await history(*args, **options)

    return count_and_read


hub.engine.history = counted(hub.engine.history)  # type: ignore[method-assign]
