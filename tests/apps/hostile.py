"""Endpoints for clients that attack the protocol, and the memory and objects of the process."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket
from websockets.server import ServerProtocol

from hubbub import Connection, Hub
from hubbub.servers.uvicorn import HubProtocol
from hubbub.transports.asgi import ASGITransport
from hubbub.transports.socket import SocketTransport

hub = Hub(max_message_size=100_000, outbox_limit=4_000_000, send_timeout=3, close_timeout=1)
other_hub = Hub()
app = FastAPI()
app.include_router(hub.router)
app.include_router(other_hub.router)

if "NO_GC" in os.environ:
    gc.disable()

released = asyncio.Event()


def _kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


@app.get("/stats")
async def stats() -> dict[str, Any]:
    kinds = (Connection, SocketTransport, HubProtocol, ASGITransport, ServerProtocol, WebSocket)
    alive = Counter(type(thing).__name__ for thing in gc.get_objects() if issubclass(type(thing), kinds))
    return {**asdict(hub.stats()), "alive": alive, "peak_kib": _kib("VmHWM"), "resident_kib": _kib("VmRSS")}


@app.get("/release")
async def release() -> None:
    released.set()


@app.get("/say/{text}")
async def say(text: str) -> None:
    await hub.publish("room", text)
    await other_hub.publish("room", text)


@app.websocket("/room")
async def room(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("room")
        await client.send_text("ready")
        async for message in client.iter_text():
            await hub.publish("room", str(len(message)))


@app.websocket("/bytes/{count}")
async def replay(websocket: WebSocket, count: int) -> None:
    """Send as much at once as a client gets that resumes in a channel with history."""
    async with hub.connection(websocket) as client:
        await client.send_text("ready")
        for number in range(count // 10_000):
            await client.send_text(f"{number:08}".ljust(10_000, "."))
        await client.send_text("all")
        async for _ in client.iter_text():
            pass


@app.websocket("/twice/{whose}")
async def twice(websocket: WebSocket, whose: str) -> None:
    """Open a second connection on the socket of the first, which stays open until the release."""
    second = {"same": hub, "other": other_hub}[whose]
    async with hub.connection(websocket) as client:
        await client.subscribe("room")
        try:
            async with second.connection(websocket) as also:
                await also.subscribe("room")
                await client.send_text("twice")
                await released.wait()
        except RuntimeError as exc:
            await client.send_text(str(exc))
        await released.wait()


@app.websocket("/again")
async def again(websocket: WebSocket) -> None:
    """Open a second connection after the first."""
    async with hub.connection(websocket) as client:
        await client.send_text("ready")
    async with other_hub.connection(websocket) as client:
        await client.send_text("again")


@app.websocket("/plain")
async def plain(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("ready")
    while True:
        await websocket.send_text(str(len(await websocket.receive_text())))
