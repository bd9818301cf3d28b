"""Declared channels of a hub with low limits."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, WebSocket

from hubbub import History, Hub, Identity, RateLimit
from tests.apps.crossing import PAGE

#: The limits of the hub: connections of the process, and those of one user.
MOST, MOST_OF_USER = 4, 2

hub = Hub(
    max_connections=MOST,
    max_user_connections=MOST_OF_USER,
    max_message_rate=1,
    allow_origins=[PAGE],
    hosts=["127.0.0.1"],
)
app = FastAPI()
app.include_router(hub.router)

#: Calls of ``on_connect``.
calls: list[str | None] = []


@hub.on_connect
async def connect(user: Annotated[str | None, Query()] = None) -> Identity:
    calls.append(user)
    if user == "banned":
        raise HTTPException(401, "who is this?")
    return Identity(user)


room = hub.channel("room:{room_id}", client_publish=True)
closed = hub.channel("closed:{room_id}")
state = hub.channel("state:{room_id}", history=History())
limited = hub.channel("limited:{room_id}")


@closed.on_subscribe
async def enter() -> None:
    raise HTTPException(403, "closed")


@state.snapshot
async def snapshot() -> int:
    return 7


@limited.on_publish
async def say(message: str, limit: Annotated[None, Depends(RateLimit("2/hour"))]) -> str:
    return message


@hub.rpc("double")
async def double(number: int) -> int:
    return 2 * number


@app.get("/")
async def root() -> dict[str, Any]:
    stats = hub.stats()
    refused = {reason: count for reason, count in stats.refused.items() if count}
    return {"open": stats.connections, "calls": len(calls), "refused": refused}


@app.websocket("/own")
async def own(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        async for text in client.iter_text():
            await client.send(text)
