"""An app that reports the send path of its clients, with streams that do not end by themselves.

The environment variable ``WRAPS`` wraps ``send`` or ``receive`` in a middleware; ``NO_ROUTER`` leaves out the
hub's router, so that the first client starts the hub.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubbub import Hub
from hubbub.transports.asgi import ASGITransport
from hubbub.transports.socket import SocketTransport

hub = Hub("memory://?alone=yes")
app = FastAPI()
if "NO_ROUTER" not in os.environ:
    app.include_router(hub.router)

seen: list[str] = []


class Watching:
    """A middleware that records all messages of WebSockets in one direction."""

    def __init__(self, app: ASGIApp, direction: str) -> None:
        self._app = app
        self._direction = direction

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched_send(message: Message) -> None:
            seen.append(message["type"])
            await send(message)

        async def watched_receive() -> Message:
            message = await receive()
            seen.append(message["type"])
            return message

        if scope["type"] == "websocket" and self._direction == "send":
            await self._app(scope, receive, watched_send)
        elif scope["type"] == "websocket" and self._direction == "receive":
            await self._app(scope, watched_receive, send)
        else:
            await self._app(scope, receive, send)


if wraps := os.environ.get("WRAPS"):
    app.add_middleware(Watching, direction=wraps)


@app.get("/paths")
async def paths() -> dict[str, Any]:
    """Return the number of writers by class, and the messages that the middleware has seen."""
    kinds = (SocketTransport, ASGITransport)
    writers = Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, kinds))
    return {"writers": writers, "seen": Counter(seen), "pid": os.getpid()}


@app.websocket("/ws")
async def room(websocket: WebSocket) -> None:
    if "NO_ROUTER" in os.environ and "running" not in repr(hub):
        await hub.__aenter__()
    async with hub.connection(websocket) as client:
        await client.subscribe("room")
        await client.send_text("ready")
        async for text in client.iter_text():
            await hub.publish("room", text)


@app.websocket("/plain")
async def plain(websocket: WebSocket) -> None:
    """An endpoint without a hub, with two tasks that receive."""
    await websocket.accept()
    await websocket.send_text("ready")

    async def echo(name: str) -> None:
        await websocket.send_text(f"{name}: {await websocket.receive_text()}")

    while True:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(echo("first"))
            tasks.create_task(echo("second"))


async def ticks() -> AsyncIterator[str]:
    try:
        yield "data: ready\n\n"
        await asyncio.Event().wait()
    finally:
        print("The stream was closed.", flush=True)


@app.get("/ending")
async def ending() -> StreamingResponse:
    return StreamingResponse(hub.stopping.end(ticks()), media_type="text/event-stream")


@app.get("/endless")
async def endless() -> StreamingResponse:
    return StreamingResponse(ticks(), media_type="text/event-stream")
