"""Hubs with low limits on connections and messages."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, WebSocket

from hubbub import Hub

#: The limit of each.
MOST = 3

full = Hub(max_connections=MOST, max_user_connections=None, max_message_size=1000)
fair = Hub(max_connections=None, max_user_connections=MOST)
app = FastAPI()
app.include_router(full.router)
app.include_router(fair.router)

arrived = 0
go = asyncio.Event()


@app.get("/")
async def root() -> None:
    """Answer a test that waits for the server."""


@app.get("/stats/full")
async def stats_of_full() -> dict[str, object]:
    stats = full.stats()
    return {"open": stats.connections, **stats.refused}


@app.get("/stats/fair")
async def stats_of_fair() -> dict[str, object]:
    stats = fair.stats()
    return {"open": stats.connections, **stats.refused}


@app.websocket("/full")
async def full_ws(websocket: WebSocket) -> None:
    async with full.connection(websocket) as client:
        await client.send("welcome")
        async for text in client.iter_text():
            await client.send(str(len(text)))


@app.websocket("/silent")
async def silent(websocket: WebSocket) -> None:
    """Receive nothing."""
    async with full.connection(websocket) as client:
        await client.send("welcome")
        await asyncio.sleep(3600)


@app.websocket("/accepted")
async def accepted(websocket: WebSocket) -> None:
    await websocket.accept()
    async with full.connection(websocket) as client:
        await client.send("welcome")
        async for _ in client.iter_text():
            pass


@app.websocket("/together")
async def together(websocket: WebSocket) -> None:
    """Enter the blocks of all clients in one turn of the event loop."""
    global arrived
    arrived += 1
    if arrived == MOST * 3:
        go.set()
    await go.wait()
    async with full.connection(websocket) as client:
        await client.send("welcome")
        async for _ in client.iter_text():
            pass


@app.websocket("/fair")
async def fair_ws(websocket: WebSocket, user: str | None = None) -> None:
    async with fair.connection(websocket, user=user) as client:
        await client.send("welcome")
        async for text in client.iter_text():
            client.user = text
            await client.send(f"now {text}")


@app.websocket("/fails")
async def fails(websocket: WebSocket) -> None:
    async with full.connection(websocket):
        raise RuntimeError("on purpose")
