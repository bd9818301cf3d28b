"""WebSockets that report their handshake's head, and that are accepted when the test allows it."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request, WebSocket
from starlette.requests import ClientDisconnect

from hubbub import Hub

hub = Hub()
app = FastAPI()
app.include_router(hub.router)

received: list[str] = []
left = asyncio.Event()
waiting = asyncio.Event()
go = asyncio.Event()


@app.get("/")
async def root() -> None:
    """Answer a test that waits for the server."""


@app.get("/received")
async def received_texts() -> list[str]:
    return received


@app.post("/size")
async def size(request: Request) -> int:
    try:
        return len(await request.body())
    except ClientDisconnect:
        return -1


@app.get("/stuck")
async def stuck(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    left.set()


@app.get("/left")
async def has_left() -> None:
    await left.wait()


@app.get("/waiting")
async def is_waiting() -> None:
    await waiting.wait()


@app.get("/go")
async def accept_slow() -> None:
    go.set()


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        headers = websocket.headers
        await client.send(f"welcome {headers['host']} {len(headers.raw)} {len(websocket.url.query)}")
        async for text in client.iter_text():
            received.append(text)
            await client.send_text(text)


@app.websocket("/patient")
async def patient(websocket: WebSocket) -> None:
    """Try to accept after the client has disconnected."""
    assert (await websocket.receive())["type"] == "websocket.connect"
    waiting.set()
    assert (await websocket.receive())["type"] == "websocket.disconnect"
    await websocket.accept()
    raise AssertionError("accepted")


@app.websocket("/slow")
async def slow(websocket: WebSocket) -> None:
    waiting.set()
    await go.wait()
    async with hub.connection(websocket) as client:
        async for text in client.iter_text():
            await client.send_text(text)
