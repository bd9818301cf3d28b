"""HubProtocol beyond uvicorn's own: clients that do not read or answer are disconnected."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.clients import DEADLINE, closed, connect, connect_deaf, eventually, receive
from tests.test_slow_clients import SOON_CLOSED, SOON_GIVEN_UP, message, slow_server, stats, talk
from tests.uvicorn_process import SERVERS, Server, serve

both = pytest.mark.parametrize("name", ["hubbub run", "uvicorn --ws", "uvicorn"])

#: Pings every half second instead of uvicorn's usual 20 seconds.
PINGS = ("--ws-ping-interval", "0.5", "--ws-ping-timeout", "0.5")

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
)


@pytest.fixture
async def server(name: str, log: Path) -> AsyncIterator[Server]:
    async with slow_server(name, log, SOON_CLOSED) as server:
        yield server


def sockets(server: Server) -> set[str]:
    """The open sockets of the server."""
    folder = f"/proc/{server.process.pid}/fd"
    found = set()
    for descriptor in os.listdir(folder):
        # The server may close it meanwhile.
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"{folder}/{descriptor}"))
    return {each for each in found if each.startswith("socket:")}


async def handshake(
    server: Server, path: str, more: str = ""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HANDSHAKE.format(path=path, more=more).encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
    return reader, writer, head.decode()


@both
async def test_the_socket_of_a_client_that_never_reads_is_closed(server: Server) -> None:
    async with connect(f"{server.ws}/news/disconnect") as talker:
        assert await receive(talker) == "ready"
        before = sockets(server)
        deaf = await connect_deaf(f"{server.ws}/news/disconnect")
        socket_of_deaf = sockets(server) - before
        assert socket_of_deaf
        await talk(talker, 3000)
        assert (await stats(server))["slow_disconnects"] == 1
        await eventually(lambda: not socket_of_deaf & sockets(server))
        deaf.transport.abort()


@both
async def test_a_client_that_never_reads_does_not_delay_the_end_of_the_server(name: str, log: Path) -> None:
    command = [*SERVERS[name], *(["--drain-seconds", "60"] if name == "hubbub run" else [])]
    async with slow_server(command, log, SOON_CLOSED) as server:
        async with connect(f"{server.ws}/news/disconnect") as talker:
            assert await receive(talker) == "ready"
            deaf = await connect_deaf(f"{server.ws}/news/drop_oldest")
            await talk(talker, 3000)
        # uvicorn by itself would wait for it without a limit.
        await server.stop()
        deaf.transport.abort()
    assert "Application shutdown complete" in server.log


@both
@pytest.mark.parametrize("more", ["Sec-WebSocket-Protocol:\r\n", "Sec-WebSocket-Protocol: \r\n" * 2])
async def test_an_empty_list_of_subprotocols_is_ignored(server: Server, more: str) -> None:
    reader, writer, head = await handshake(server, "/news/disconnect", more)
    assert head.startswith("HTTP/1.1 101 ")
    assert "sec-websocket-protocol" not in head.lower()
    # A text frame without a mask that says "ready".
    assert await asyncio.wait_for(reader.readexactly(7), DEADLINE) == b"\x81\x05ready"
    writer.close()


async def test_at_shutdown_connections_are_closed_one_after_another(log: Path) -> None:
    async with serve("chat:app", log) as server:
        clients = await asyncio.gather(*(connect(f"{server.ws}/ws/{number}") for number in range(300)))
        closing = [asyncio.create_task(closed(client)) for client in clients]
        server.process.send_signal(signal.SIGTERM)
        first, later = await asyncio.wait(closing, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        assert first
        assert later
        assert {await ending for ending in closing} == {(1012, "")}
        await server.stop()
    assert "Traceback" not in server.log


async def test_at_shutdown_a_slow_client_first_gets_its_outbox(log: Path) -> None:
    async with slow_server("hubbub run", log) as server:
        talker = await connect(f"{server.ws}/news/disconnect")
        assert await receive(talker) == "ready"
        slow = await connect_deaf(f"{server.ws}/news/drop_oldest")
        await talk(talker, 3000)
        dropped = (await stats(server))["dropped"]
        server.process.send_signal(signal.SIGTERM)
        assert (await closed(talker))[0] == 1012
        slow.transport.resume_reading()
        received = [str(await receive(slow)) for _ in range(3000 - dropped)]
        assert received[-1] == message(2999)
        assert (await closed(slow))[0] == 1012


async def test_a_client_that_neither_answers_pings_nor_reads_is_disconnected(log: Path) -> None:
    command = (
        "uvicorn",
        "{target}",
        "--port",
        "{port}",
        "--ws",
        "hubbub.servers.uvicorn:HubProtocol",
        *PINGS,
    )
    async with (
        slow_server(command, log, SOON_GIVEN_UP) as server,
        connect(f"{server.ws}/news/disconnect") as talker,
    ):
        assert await receive(talker) == "ready"
        before = sockets(server)
        deaf = await connect_deaf(f"{server.ws}/news/drop_oldest")
        socket_of_deaf = sockets(server) - before
        assert socket_of_deaf
        await talk(talker, 3000)
        await eventually(lambda: not socket_of_deaf & sockets(server))
        deaf.transport.abort()


@both
async def test_little_is_read_ahead_of_a_handler(server: Server) -> None:
    """Messages that the handler has not received wait in the client, not in the server's memory."""
    async with connect(f"{server.ws}/busy") as client:
        assert await receive(client) == "ready"
        before = (await stats(server))["resident_kib"]
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await client.send(f"{sent} {'x' * 10_000}")
                sent += 1

        sending = asyncio.create_task(send())
        # Until the client cannot send any more.
        done = -1
        while done < sent:
            done = sent
            await asyncio.sleep(1)
        assert (await stats(server))["resident_kib"] - before < 5_000
        assert not sending.done()
        await server.get_json("/release")
        for number in range(done):
            assert await receive(client) == str(number)
        sending.cancel()
