"""One channel with history on the engine of ``HUBBUB_TEST_URL``, for several workers."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI, WebSocket
from pydantic import BaseModel

from hubbub import EngineUnavailable, History, Hub, Position, Unrecoverable

hub = Hub(os.environ["HUBBUB_TEST_URL"], namespace=os.environ["HUBBUB_TEST_NAMESPACE"])
hub.channel("chat", history=History(size=100_000, ttl=3600))
app = FastAPI()
app.include_router(hub.router)


class Message(BaseModel):
    """A message to publish.

    :param key: the idempotency key.
    """

    text: str
    key: str | None = None


@app.get("/pid")
async def pid() -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/history")
async def history(offset: int = 0, epoch: str = "") -> dict[str, Any]:
    """Return the channel's position and its history after a position, or all if the epoch is another one."""
    since = Position(offset, epoch)
    try:
        page = await hub.engine.history("chat", since)
        if page.position.epoch != epoch:
            page = await hub.engine.history("chat")
    except EngineUnavailable as exc:
        return {"unavailable": str(exc)}
    return {
        "position": page.position,
        "kept": [[each.offset, each.epoch, each.data.decode()] for each in page.publications],
    }


@app.post("/publish")
async def publish(message: Message) -> dict[str, Any]:
    try:
        position = await hub.publish("chat", message.text, idempotency_key=message.key)
    except EngineUnavailable as exc:
        return {"unavailable": str(exc)}
    return {"accepted": position}


@app.websocket("/publish")
async def talk(websocket: WebSocket) -> None:
    """As above, over a WebSocket."""
    async with hub.connection(websocket) as client:
        async for message in client.iter_messages(Message):
            await client.send_json(await publish(message))


@app.websocket("/chat")
async def chat(websocket: WebSocket, offset: int | None = None, epoch: str = "") -> None:
    """Send the worker's process id, the missed messages, the position, and then live messages."""
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
