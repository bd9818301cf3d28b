"""Endpoints that end in every way an endpoint can end."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketException
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from hubbub import Connection, Hub
from hubbub.core.feed import Feed
from hubbub.core.outbox import Outbox
from hubbub.node import node, subscriptions
from hubbub.node.control import CONTROL
from hubbub.transports.asgi import ASGITransport
from hubbub.transports.socket import SocketTransport

# Channels without subscribers are left at once, so that tests need not wait for that.
node.TICK = 0.05
subscriptions.LINGER = 0.05

hub = Hub(max_message_size=1000, close_timeout=2)
app = FastAPI()
app.include_router(hub.router)


class ForWebSocketsError(Exception):
    pass


class KickedError(WebSocketException):
    pass


class ForHTTPError(Exception):
    pass


class Move(BaseModel):
    x: int


@app.exception_handler(ForWebSocketsError)
async def close_politely(websocket: WebSocket, exc: ForWebSocketsError) -> None:
    await websocket.close(4404, "handled")


@app.exception_handler(KickedError)
async def kick(websocket: WebSocket, exc: KickedError) -> None:
    await websocket.close(exc.code, f"kicked: {exc.reason}")


@app.exception_handler(ForHTTPError)
async def teapot(request: Request, exc: ForHTTPError) -> JSONResponse:
    return JSONResponse({"detail": "I'm a teapot"}, 418)


@app.get("/remains")
async def remains() -> dict[str, Any]:
    """Return the objects of connections that are alive in this process."""
    gc.collect()
    kinds = (Connection, SocketTransport, Feed, Outbox, ASGITransport)
    alive = Counter(
        type(thing).__name__
        for thing in gc.get_objects()
        # Nodes have a channel of their own for commands.
        if isinstance(thing, kinds) and not (isinstance(thing, Feed) and thing.channel == CONTROL)
    )
    stats = asdict(hub.stats())
    # Handlers publish when their block has ended, and this counts for ever.
    del stats["published"]
    return {"tasks": len(asyncio.all_tasks()), "alive": alive, **stats}


@app.websocket("/ends/{how}")
async def ends(websocket: WebSocket, how: str) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe("endings")
        await client.send_text("ready")
        await client.receive()
        match how:
            case "break":
                async for _ in client.iter_text():
                    break
            case "close":
                await client.close(4001, "é" * 200)
            case "exception":
                raise LookupError("a handler that raises")
            case "group":
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(client.receive_text())
                    tasks.create_task(asyncio.sleep(60))
            case "websocket-exception":
                raise WebSocketException(4401, "why")
            case "long-reason":
                raise WebSocketException(4401, "x" * 500)
            case "bad-code":
                raise WebSocketException(1006, "no such thing")
            case "http-403":
                raise HTTPException(403, "not your room")
            case "http-503":
                raise HTTPException(503, "later")
            case "kicked":
                raise KickedError(4003, "spam")
            case "handled":
                raise ForWebSocketsError
            case "handled-for-http":
                raise ForHTTPError
            case "text-expected":
                await client.receive_text()
            case "bytes-expected":
                await client.receive_bytes()
            case "json-expected":
                await client.receive_json()
            case "message-expected":
                await client.receive_message(Move)
            case "too-late":
                async for _ in client.iter_text():
                    pass
                raise WebSocketException(4401, "too late")
            case "stalled":
                while not hub.stats().backlog:
                    await client.send(b"x" * 65_536)
                raise WebSocketException(4401, "unread")
            case "cancelled":
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)
                await client.receive()
            case "closed-by-another":
                closer = asyncio.create_task(client.close(4002, "enough"))
                async for _ in client.iter_text():
                    pass
                await closer
            case "twice":
                await asyncio.gather(client.receive(), client.receive())
    await hub.publish("log", f"after {how}")


@app.websocket("/caught")
async def caught(websocket: WebSocket) -> None:
    with suppress(WebSocketException):
        async with hub.connection(websocket) as client:
            raise HTTPException(403, "not your room")
    await hub.publish("log", f"after {client!r}")


@app.websocket("/log")
async def log(websocket: WebSocket) -> None:
    """Receives a message from each endpoint whose block has ended without an exception."""
    async with hub.connection(websocket) as client:
        await client.subscribe("log")
        await client.send_text("ready")
        async for _ in client.iter_text():
            pass


@app.websocket("/moves")
async def moves(websocket: WebSocket) -> None:
    async with hub.connection(websocket) as client:
        async for move in client.iter_messages(Move):
            await client.send({"moved": move.x})


@app.websocket("/kinds/{kind}")
async def kinds(websocket: WebSocket, kind: str) -> None:
    async with hub.connection(websocket) as client:
        loop: Any = {"text": client.iter_text, "bytes": client.iter_bytes, "json": client.iter_json}[kind]
        async for data in loop():
            await client.send(data)
