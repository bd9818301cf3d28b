"""``python -m benchmarks.typed``: CPU of a typed message beside a loop that is written by hand.

One client sends messages to an endpoint in this process, without a server and a network, so that nothing but
the handling of messages is measured. The endpoints take turns.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, WebSocket
from pydantic import BaseModel, Field

from hubbub import Hub

#: Messages of one measurement, and measurements of each endpoint.
MESSAGES, ROUNDS = 5_000, 9


class Say(BaseModel):
    type: Literal["say"] = "say"
    text: Annotated[str, Field(max_length=2000)]


class Said(BaseModel):
    type: Literal["said"] = "said"
    user: str
    text: str


hub = Hub(max_message_rate=None)
app = FastAPI()
app.include_router(hub.router)
bare = hub.channel("bare")
typed = hub.channel("typed:{room_id}")
injected = hub.channel("injected:{room_id}")


@app.websocket("/by-hand")
async def by_hand(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("by-hand")
        while True:
            message = await client.receive_json()
            await hub.publish("by-hand", {"type": "said", "user": "ann", "text": message["text"]})


@bare.on_publish
async def say_bare(message: Say):  # type: ignore[no-untyped-def]  # without an annotation of the result
    return {"type": "said", "user": "ann", "text": message.text}


@typed.on_publish
async def say_typed(message: Say, room_id: int) -> Said:
    return Said(user="ann", text=message.text)


async def current_user() -> str:
    return "ann"


async def session() -> AsyncIterator[int]:
    yield 1


@injected.on_publish
async def say_injected(
    message: Say,
    room_id: int,
    user: Annotated[str, Depends(current_user)],
    db: Annotated[int, Depends(session)],
) -> Said:
    return Said(user=user, text=message.text)


ENDPOINTS = {
    "by hand": "/by-hand",
    "model": "/channels/bare",
    "model, path parameter, result": "/channels/typed:5",
    "the same, async and yield dependency": "/channels/injected:5",
}


async def measure(path: str) -> float:
    """Return the CPU of one message in µs."""
    text = json.dumps({"type": "say", "text": "hello world, this is a message"})
    frame = {"type": "websocket.receive", "text": text}
    received, sent = -1, 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        if received == 0:
            return {"type": "websocket.connect"}
        if received > MESSAGES:
            return {"type": "websocket.disconnect", "code": 1000}
        if received % 32 == 0:
            # As a server does that has read a part of the socket.
            await asyncio.sleep(0)
        return frame

    async def send(event: dict[str, Any]) -> None:
        nonlocal sent
        sent += event["type"] == "websocket.send"

    scope: dict[str, Any] = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "subprotocols": [],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        "extensions": {"websocket.http.response": {}},
    }
    begin = time.process_time()
    await app(scope, receive, send)  # type: ignore[arg-type]
    seconds = time.process_time() - begin
    # The last publications may have come when the client had left.
    assert sent >= MESSAGES - 64, f"Expected {MESSAGES} publications, but got {sent}."
    return seconds / MESSAGES * 1e6


async def main() -> None:
    found: dict[str, list[float]] = {name: [] for name in ENDPOINTS}
    async with app.router.lifespan_context(app):
        for _ in range(ROUNDS):
            for name, path in ENDPOINTS.items():
                found[name].append(await measure(path))
    base = statistics.median(found["by hand"])
    for name, times in found.items():
        median = statistics.median(times)
        print(f"{name:38} {median:6.1f} µs   {median - base:+6.1f} µs   {median / base:5.2f} x")


if __name__ == "__main__":
    asyncio.run(main())
