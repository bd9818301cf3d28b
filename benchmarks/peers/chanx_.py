"""chanx on FastAPI and fast-channels: the chat of its README."""

import logging
from typing import Literal

import structlog
from chanx.core.decorators import channel, ws_handler
from chanx.fast_channels.websocket import AsyncJsonWebsocketConsumer
from chanx.messages.base import BaseMessage
from fast_channels.layers import InMemoryChannelLayer, register_channel_layer
from fastapi import FastAPI

# It logs every disconnection; the other servers say nothing below a warning either.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

# By default a client that has 100 messages waiting misses the next ones, without an error.
register_channel_layer("default", InMemoryChannelLayer(capacity=1_000_000))


class BenchMessage(BaseMessage):
    action: Literal["bench"] = "bench"
    payload: str


class BenchNotification(BaseMessage):
    action: Literal["bench_notification"] = "bench_notification"
    payload: str


@channel(name="bench")
class BenchConsumer(AsyncJsonWebsocketConsumer):
    channel_layer_alias = "default"
    groups = ["bench"]  # noqa: RUF012
    send_message_immediately = False  # or every send is followed by a turn of the event loop

    @ws_handler(output_type=BenchNotification)
    async def handle_bench(self, message: BenchMessage) -> None:
        await self.broadcast_message(BenchNotification(payload=message.payload))


app = FastAPI()
# The README calls it on the app, where FastAPI no longer has it.
app.router.add_websocket_route("/ws", BenchConsumer.as_asgi())
