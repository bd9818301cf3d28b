"""Clients for tests: polite ones, and ones that vanish."""

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

#: Seconds after which a test gives up on anything. Only what hangs takes that long, on a busy machine too.
DEADLINE = 60


async def eventually(condition: Callable[[], bool | Awaitable[bool]], timeout: float = DEADLINE) -> None:
    """Wait until ``condition`` holds, for what another process does and nobody announces."""
    async with asyncio.timeout(timeout):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.02)


def connect(url: str, **options: Any) -> _connect:
    """A connection whose reading never pauses, so that what a test leaves unread does not delay its close.

    It sends no pings of its own: while a test has paused its reading it would see no pong.
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
    """An HTTP client that waits as long as any other part of a test, for servers on this machine."""
    # Without certificates, which take 30 ms to load.
    return httpx2.AsyncClient(**{"timeout": DEADLINE, "verify": False, **options})


async def receive(client: ClientConnection) -> str | bytes:
    async with asyncio.timeout(DEADLINE):
        return await client.recv()


async def receive_json(client: ClientConnection) -> Any:
    return json.loads(await receive(client))


async def connect_deaf(url: str, **options: Any) -> ClientConnection:
    """A client that reads its first message and then nothing, with as little buffered for it as possible."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((urlsplit(url).hostname, urlsplit(url).port))
    sock.setblocking(False)
    client = await connect(url, sock=sock, **options)
    assert await receive(client)
    client.transport.pause_reading()
    return client


async def closed(client: ClientConnection) -> tuple[int | None, str | None]:
    """Read until the connection is closed; returns the close code and reason."""
    async with asyncio.timeout(DEADLINE):
        try:
            while True:
                await client.recv()
        except ConnectionClosed:
            # 1006 where there was no close frame.
            return client.close_code, client.close_reason


async def exchange(port: int, data: bytes, until: bytes | None = None) -> bytes:
    """Send ``data`` as it is. Returns what comes up to ``until``, or until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(DEADLINE):
            return await (reader.read() if until is None else reader.readuntil(until))
    finally:
        writer.close()


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A short frame of a client, with a mask of zeros (:rfc:`6455#section-5.2`)."""
    assert len(payload) < 126
    return bytes([fin << 7 | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload


def reset(client: ClientConnection) -> None:
    """Vanish by a TCP reset: no close frame, no FIN."""
    sock: socket.socket = client.transport.get_extra_info("socket")
    # Lingering for zero seconds makes closing send RST and drop what was not sent (SO_LINGER in socket(7)).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()
