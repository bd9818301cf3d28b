"""Django Channels: its tutorial's asynchronous consumer, without the JSON.

On the in-memory layer, or on a layer on the store with default settings.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

if store := os.environ.get("STORE"):
    layer = {"BACKEND": os.environ["LAYER"], "CONFIG": {"hosts": [store]}}
else:
    # By default a client that has 100 messages waiting misses the next ones, without an error.
    layer = {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 1_000_000}}
settings.configure(CHANNEL_LAYERS={"default": layer})
django.setup()


class BenchConsumer(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.channel_layer.group_add("bench", self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard("bench", self.channel_name)

    async def receive(self, text_data: str) -> None:
        await self.channel_layer.group_send("bench", {"type": "bench.message", "text": text_data})

    async def bench_message(self, event: dict[str, str]) -> None:
        await self.send(text_data=event["text"])


app = ProtocolTypeRouter({"websocket": URLRouter([path("ws", BenchConsumer.as_asgi())])})


@asynccontextmanager
async def publishing() -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    layer = get_channel_layer()

    async def publish(text: str) -> None:
        await layer.group_send("bench", {"type": "bench.message", "text": text})

    yield publish
