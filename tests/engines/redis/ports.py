"""Ports for engines to connect to, where the test answers in place of a Redis server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from tests.clients import DEADLINE


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]],
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Handle connections on a port; at the end, wait for the last of them."""
    tasks: set[asyncio.Task[object]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(OSError):
            await handle(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls) as listener:
        yield listener.sockets[0].getsockname()[1]
    if tasks:
        await asyncio.wait(tasks, timeout=DEADLINE)


class Proxy:
    """A proxy between an engine and its server.

    It counts the engine's writes, and can swallow the messages to listening connections.
    """

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.writes = 0
        self.is_silencing = False

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        is_listener = False

        async def forth() -> None:
            nonlocal is_listener
            while data := await reader.read(2**20):
                is_listener = is_listener or b"SUBSCRIBE" in data
                self.writes += 1
                server_writer.write(data)
            server_writer.close()

        async def back() -> None:
            while data := await server_reader.read(2**20):
                if not (is_listener and self.is_silencing):
                    writer.write(data)

        await asyncio.gather(forth(), back())
        with suppress(OSError):
            await server_writer.wait_closed()
