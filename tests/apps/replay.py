"""A channel with more history than fits into an outbox, for clients that resume."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, WebSocket

from hubbub import History, Hub
from tests.apps.slow import resident_kib

hub = Hub(close_timeout=1, send_timeout=float(os.environ.get("HUBBUB_TEST_SEND_TIMEOUT", "60")))
hub.channel("chat", history=History(size=100_000))
app = FastAPI()
app.include_router(hub.router)


@app.get("/stats")
async def stats() -> dict[str, Any]:
    return {**asdict(hub.stats()), "resident_kib": resident_kib()}


@app.post("/fill")
async def fill(count: int, size: int) -> str:
    """Publish ``count`` messages, and return the id of the position before the first."""
    first = await hub.publish("chat", "x" * size)
    for _ in range(count - 1):
        await hub.publish("chat", "x" * size)
    return str(first._replace(offset=first.offset - 1))


@app.websocket("/chat")
async def chat(websocket: WebSocket, since: str | None = None) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("chat", since=since, positions=True)
        async for _ in client.iter_text():
            pass
