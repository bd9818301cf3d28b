"""Sockets that say what their handshake had, and that are accepted when the test says so."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request, WebSocket
from starlette.requests import ClientDisconnect

from hubbub import Hub

hub = Hub()
app = FastAPI()
app.include_router(hub.router)

heard: list[str] = []
left = asyncio.Event()
waiting = asyncio.Event()
go = asyncio.Event()


@app.get("/")
async def root() -> None:
    """Tells a test that the server is there."""


@app.get("/heard")
async def what_was_heard() -> list[str]:
    return heard


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
async def slow_disconnects() -> None:
    go.set()


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        headers = websocket.headers
        await client.send(f"welcome {headers['host']} {len(headers.raw)} {len(websocket.url.query)}")
        async for text in client.iter_text():
            heard.append(text)
            await client.send_text(text)


@app.websocket("/patient")
async def patient(websocket: WebSocket) -> None:
    """Would accept when the client has gone."""
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
