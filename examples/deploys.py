"""Publish from the lifespan and from a ``def`` endpoint; other processes publish to the same channel.

Run: hubbub run deploys:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, WebSocket

from hubbub import History, Hub

hub = Hub(os.environ.get("DEPLOYS_HUB", "sqlite:///deploys.db"))
hub.channel("deploys", history=History(size=100))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await hub.publish("deploys", {"status": "the app is up"})
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(hub.router)


@app.post("/deploys")
def deploy(version: str) -> int:
    position = hub.publish_sync("deploys", {"version": version, "status": "planned"})
    return position.offset


@app.websocket("/deploys/live")
async def live(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("deploys", history=10)
        async for _ in client.iter_text():
            pass  # This client only listens. The loop ends when it disconnects.
