"""Clients for tests, also those that misbehave or vanish."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as _connect
from websockets.exceptions import ConnectionClosed

#: Seconds after which a test fails that waits for an event, so long that only a bug reaches it.
DEADLINE = 60


async def eventually(condition: Callable[[], bool | Awaitable[bool]], timeout: float = DEADLINE) -> None:
    """Wait until ``condition`` holds, for changes in another process that no event announces."""
    async with asyncio.timeout(timeout):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.02)


def connect(url: str, **options: Any) -> _connect:
    """Connect a client whose reading never pauses, so that unread messages do not delay its close.

    It sends no pings, since it sees no pong while a test has paused its reading.
    """
    defaults = {
        "max_queue": None,
        "compression": None,
        "open_timeout": DEADLINE,
        "close_timeout": DEADLINE,
        "ping_interval": None,
    }
    return _connect(url, **{**defaults, **options})


def http_client(**options: Any) -> httpx2.AsyncClient:
    """Return an HTTP client for servers on this machine, with the timeout of tests."""
    # Without certificates, which take 30 ms to load.
    return httpx2.AsyncClient(**{"timeout": DEADLINE, "verify": False, **options})


async def receive(client: ClientConnection) -> str | bytes:
    async with asyncio.timeout(DEADLINE):
        return await client.recv()


async def receive_json(client: ClientConnection) -> Any:
    return json.loads(await receive(client))


async def connect_deaf(url: str, **options: Any) -> ClientConnection:
    """Connect a client that reads only its first message, with as little buffered for it as possible."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((urlsplit(url).hostname, urlsplit(url).port))
    sock.setblocking(False)
    client = await connect(url, sock=sock, **options)
    assert await receive(client)
    client.transport.pause_reading()
    return client


async def closed(client: ClientConnection) -> tuple[int | None, str | None]:
    """Read until the connection is closed, and return the close code and the reason."""
    async with asyncio.timeout(DEADLINE):
        try:
            while True:
                await client.recv()
        except ConnectionClosed:
            # The code is 1006 if there was no close frame.
            return client.close_code, client.close_reason


async def exchange(port: int, data: bytes, until: bytes | None = None) -> bytes:
    """Send ``data``, and return the answer up to ``until``, or until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(DEADLINE):
            return await (reader.read() if until is None else reader.readuntil(until))
    finally:
        writer.close()


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """Return a short frame of a client, with a mask of zeros (:rfc:`6455#section-5.2`)."""
    assert len(payload) < 126
    return bytes([fin << 7 | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload


def reset(client: ClientConnection) -> None:
    """Reset the client's TCP connection: no close frame, no FIN."""
    sock: socket.socket = client.transport.get_extra_info("socket")
    # Lingering for zero seconds makes closing send RST and drop what was not sent (SO_LINGER in socket(7)).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()
