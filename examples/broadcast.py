"""Broadcast to all connected clients: from a request's background task, and every second from the lifespan.

Run: hubbub run broadcast:app
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from fastapi import BackgroundTasks, FastAPI, WebSocket

from hubbub import EngineUnavailable, Hub

hub = Hub()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with hub:  # keeps the hub running for the task, until it is cancelled
        clock = asyncio.create_task(tick())
        yield
        clock.cancel()


async def tick() -> None:
    while True:
        with suppress(EngineUnavailable):  # An outage of Redis, say: the next tick tries again.
            await hub.publish("news", {"time": datetime.now(UTC)})
        await asyncio.sleep(1)


app = FastAPI(lifespan=lifespan)
app.include_router(hub.router)


@app.websocket("/ws")
async def listen(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("news")
        async for _ in client.iter_text():
            pass  # This client only listens. The loop ends when it disconnects.


@app.post("/news", status_code=202)
async def announce(text: str, background: BackgroundTasks) -> None:
    background.add_task(hub.publish, "news", {"text": text})  # runs after the response has been sent
