"""One channel with presence on the engine of ``HUBBUB_TEST_URL``, for several workers."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, WebSocket

from hubbub import Hub

hub = Hub(
    os.environ["HUBBUB_TEST_URL"],
    namespace=os.environ["HUBBUB_TEST_NAMESPACE"],
    presence_ttl=float(os.environ["HUBBUB_TEST_TTL"]),
)
hub.channel("room", presence=True)
app = FastAPI()
app.include_router(hub.router)


@app.get("/pid")
async def pid() -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/presence")
async def presence() -> list[str]:
    return sorted(member.user or "" for member in await hub.presence("room"))


@app.get("/state")
async def state() -> dict[str, Any]:
    return {**asdict(await hub.health()), **asdict(hub.stats())}


@app.delete("/users/{user}")
async def disconnect(user: str) -> None:
    await hub.disconnect(user=user)


@app.websocket("/room/{user}")
async def enter(websocket: WebSocket, user: str) -> None:
    async with hub.connection(websocket, user=user) as client:
        await client.send_json({"pid": os.getpid()})
        await client.subscribe("room", join_leave="connections")
        async for _ in client.iter_text():
            pass
