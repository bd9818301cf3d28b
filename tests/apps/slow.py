"""A channel with slow subscribers, one endpoint per policy, and a handler that streams to one client.

Timeouts are long, since clients may be slow because the machine is busy. A test of a timeout sets
``HUBBUB_TEST_SEND_TIMEOUT`` or ``HUBBUB_TEST_CLOSE_TIMEOUT``.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket

from hubbub import Hub
from hubbub.types import SlowConsumer

hub = Hub(
    outbox_limit=300_000,
    close_timeout=float(os.environ.get("HUBBUB_TEST_CLOSE_TIMEOUT", "60")),
    send_timeout=float(os.environ.get("HUBBUB_TEST_SEND_TIMEOUT", "60")),
)
app = FastAPI()
app.include_router(hub.router)

streamed = 0


def resident_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@app.get("/stats")
async def stats() -> dict[str, Any]:
    return {**asdict(hub.stats()), "resident_kib": resident_kib(), "streamed": streamed}


@app.websocket("/news/{policy}")
async def news(websocket: WebSocket, policy: SlowConsumer) -> None:
    async with hub.connection(websocket, slow_consumer=policy) as client:
        await client.subscribe("news")
        await client.send_text("ready")
        async for text in client.iter_text():
            await hub.publish("news", text)


@app.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    global streamed
    streamed = 0
    async with hub.connection(websocket) as client:
        while True:
            await client.send_text("x" * 10_000)
            streamed += 1


released = asyncio.Event()


@app.get("/release")
async def release() -> None:
    released.set()


@app.websocket("/busy")
async def busy(websocket: WebSocket) -> None:
    """Receive no message before the release."""
    async with hub.connection(websocket) as client:
        await client.send_text("ready")
        await released.wait()
        async for text in client.iter_text():
            await client.send_text(text.partition(" ")[0])
