"""One channel with history on the engine of ``HUBBUB_TEST_URL``, for several workers."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI, WebSocket

from hubbub import EngineUnavailable, History, Hub, Position, Unrecoverable

hub = Hub(os.environ["HUBBUB_TEST_URL"], namespace=os.environ["HUBBUB_TEST_NAMESPACE"])
hub.channel("chat", history=History(size=100_000, ttl=3600))
app = FastAPI()
app.include_router(hub.router)


@app.get("/pid")
async def pid() -> dict[str, int]:
    return {"pid": os.getpid()}


@app.post("/publish")
async def publish(text: str) -> dict[str, Any]:
    try:
        position = await hub.publish("chat", text, idempotency_key=text)
    except EngineUnavailable as exc:
        return {"unavailable": str(exc)}
    return {"offset": position.offset, "epoch": position.epoch}


@app.websocket("/chat")
async def chat(websocket: WebSocket, offset: int | None = None, epoch: str = "") -> None:
    """Sends the worker's process id, then what was missed, then the position, then what is new."""
    async with hub.connection(websocket) as client:
        await client.send_json({"pid": os.getpid()})
        since = None if offset is None else Position(offset, epoch)
        try:
            position = await client.subscribe("chat", since=since)
        except Unrecoverable as exc:
            await client.send_json({"lost": [exc.offset, exc.epoch]})
            return
        except EngineUnavailable:
            await client.close(1013, "try again later")
            return
        await client.send_json({"position": position})
        async for text in client.iter_text():
            await hub.publish("chat", text, idempotency_key=text)
