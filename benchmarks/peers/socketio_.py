"""python-socketio: an ``AsyncServer`` that emits to all clients, alone or with others through the store."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import socketio

store = os.environ.get("STORE")
server = socketio.AsyncServer(
    async_mode="asgi", client_manager=socketio.AsyncRedisManager(store) if store else None
)
app = socketio.ASGIApp(server)


@server.event
async def bench(sid: str, text: str) -> None:
    await server.emit("bench", text)


@asynccontextmanager
async def publishing() -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    # From its documentation, for processes that are not servers.
    yield partial(socketio.AsyncRedisManager(store, write_only=True).emit, "bench")
