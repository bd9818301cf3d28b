"""The connection that applications use: its names, and its end with its block."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from hubbub import Connection, Hub


def test_public_names_are_those_that_applications_use() -> None:
    """Names that the node and the writer need are in other modules."""
    instance = {"id", "websocket"}
    assert {name for name in dir(Connection) if not name.startswith("_")} | instance == {
        *("id", "user", "websocket", "subscribe", "unsubscribe", "close"),
        *("send", "send_text", "send_bytes", "send_json"),
        *("receive", "receive_text", "receive_bytes", "receive_json", "receive_message"),
        *("iter_text", "iter_bytes", "iter_json", "iter_messages"),
    }


def test_instances_have_no_other_public_names() -> None:
    app, hub = FastAPI(), Hub()
    app.include_router(hub.router)
    names: set[str] = set()

    @app.websocket("/")
    async def ws(websocket: WebSocket) -> None:
        async with hub.connection(websocket) as client:
            names.update(name for name in vars(client) if not name.startswith("_"))

    with TestClient(app) as client, client.websocket_connect("/") as socket:
        socket.receive()
    assert names == {"id", "websocket"}


def test_a_connection_that_is_used_behind_its_block_is_an_error() -> None:
    app, hub = FastAPI(), Hub()
    app.include_router(hub.router)
    elsewhere: list[BaseException | None] = []
    refused: list[str] = []

    @app.websocket("/{how}")
    async def ws(websocket: WebSocket, how: str) -> None:
        async with hub.connection(websocket) as client:
            async for _ in client.iter_text():
                break
        # For another task, the connection has ended as it does when the client leaves.
        task = asyncio.create_task(client.send("late"))
        await asyncio.wait([task])
        elsewhere.append(task.exception())
        uses: dict[str, Callable[[], Awaitable[object]]] = {
            "send": lambda: client.send("late"),
            "receive": client.receive,
            "subscribe": lambda: client.subscribe("chat"),
            "close": client.close,
        }
        with pytest.raises(RuntimeError, match=r"the block of 'async with hub\.connection.* has ended"):
            await uses[how]()
        refused.append(how)

    with TestClient(app) as client:
        for how in ("send", "receive", "subscribe", "close"):
            with client.websocket_connect(f"/{how}") as socket:
                socket.send_text("x")
                assert socket.receive()["code"] == 1000
    assert refused == ["send", "receive", "subscribe", "close"]
    assert all(exc is None or isinstance(exc, WebSocketDisconnect) for exc in elsewhere)
