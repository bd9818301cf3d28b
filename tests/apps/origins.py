"""A hub that lets in pages of one other host."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket

from hubbub import Hub

hub = Hub(allow_origins=["https://app.example.com", "http://localhost:5173"])
app = FastAPI()
app.include_router(hub.router)


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        await client.send_text("welcome")


@app.websocket("/accepted")
async def accepted(websocket: WebSocket) -> None:
    await websocket.accept()
    async with hub.connection(websocket) as client:
        await client.send_text("welcome")
