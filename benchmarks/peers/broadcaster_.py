"""encode/broadcaster: the chat of its README, with two tasks per socket, on ``memory://`` or the store."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
from broadcaster import Broadcast
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

broadcast = Broadcast(os.environ.get("STORE", "memory://"))


async def bench(websocket: WebSocket) -> None:
    await websocket.accept()
    async with anyio.create_task_group() as task_group:

        async def run_receiver() -> None:
            await receiver(websocket)
            task_group.cancel_scope.cancel()

        task_group.start_soon(run_receiver)
        await sender(websocket)


async def receiver(websocket: WebSocket) -> None:
    async for message in websocket.iter_text():
        await broadcast.publish(channel="bench", message=message)


async def sender(websocket: WebSocket) -> None:
    async with broadcast.subscribe(channel="bench") as subscriber:
        async for event in subscriber:
            await websocket.send_text(event.message)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with broadcast:
        yield


app = Starlette(routes=[WebSocketRoute("/ws", bench)], lifespan=lifespan)


@asynccontextmanager
async def publishing() -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    async with broadcast:
        yield partial(broadcast.publish, "bench")
