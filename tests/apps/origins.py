"""A hub that allows the pages of two other hosts, and one that answers to a few host names."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket

from hubbub import Hub

hub = Hub(allow_origins=["https://app.example.com", "http://localhost:5173"])
named = Hub(hosts=["localhost", "www.example.com", "127.0.0.0/8", "::1"])
app = FastAPI()
app.include_router(hub.router)
app.include_router(named.router)


@app.get("/stats")
async def stats() -> dict[str, int]:
    return hub.stats().refused


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.send_text("welcome")


@app.websocket("/named")
async def with_a_name(websocket: WebSocket) -> None:
    async with named.connection(websocket) as client:
        await client.send_text("welcome")


@app.websocket("/accepted")
async def accepted(websocket: WebSocket) -> None:
    await websocket.accept()
    async with hub.connection(websocket) as client:
        await client.send_text("welcome")
