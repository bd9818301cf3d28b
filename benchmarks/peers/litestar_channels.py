"""Litestar: ``ChannelsPlugin``, which sends from a task per socket, in memory or on the store."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from litestar import Litestar, WebSocket, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.channels.backends.redis import RedisChannelsPubSubBackend
from redis.asyncio import Redis

store = os.environ.get("STORE")
backend = RedisChannelsPubSubBackend(redis=Redis.from_url(store)) if store else MemoryChannelsBackend()
plugin = ChannelsPlugin(backend, channels=["bench"])


@websocket("/ws")
async def bench(socket: WebSocket, channels: ChannelsPlugin) -> None:
    await socket.accept()
    async with (
        channels.start_subscription("bench") as subscriber,
        subscriber.run_in_background(socket.send_text),
    ):
        while True:
            await channels.wait_published(await socket.receive_text(), "bench")


app = Litestar([bench], plugins=[plugin])


@asynccontextmanager
async def publishing() -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    async def publish(text: str) -> None:
        await plugin.wait_published(text, "bench")

    async with plugin:
        yield publish
