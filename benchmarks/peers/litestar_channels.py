"""Litestar: ``ChannelsPlugin`` with its in-memory backend, which sends from a task per socket."""

from litestar import Litestar, WebSocket, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend


@websocket("/ws")
async def bench(socket: WebSocket, channels: ChannelsPlugin) -> None:
    await socket.accept()
    async with (
        channels.start_subscription("bench") as subscriber,
        subscriber.run_in_background(socket.send_text),
    ):
        while True:
            await channels.wait_published(await socket.receive_text(), "bench")


app = Litestar([bench], plugins=[ChannelsPlugin(MemoryChannelsBackend(), channels=["bench"])])
