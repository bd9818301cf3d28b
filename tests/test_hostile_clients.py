"""Hostile clients, and handlers that use a socket twice.

Memory is bounded, no message reaches another client, and no object is left behind.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.clients import DEADLINE, closed, connect, connect_deaf, eventually, receive, reset
from tests.servers.test_hub_protocol import HANDSHAKE, handshake, sockets
from tests.uvicorn_process import ROOT, SERVERS, Server, serve

APP = "tests.apps.hostile:app"
PINGS = ("--ws-ping-interval", "0.5", "--ws-ping-timeout", "2")

#: ``Hub(max_message_size=…)`` of the app.
LIMIT = 100_000

both = pytest.mark.parametrize("name", ["hubbub run", "uvicorn"])
all_servers = pytest.mark.parametrize("name", SERVERS)

#: Bytes that the kernel buffers of a connection in one direction, at the most.
KERNEL_BYTES = sum(
    int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2]) for name in ("tcp_rmem", "tcp_wmem")
)

MASK = b"\0\0\0\0"
TEXT, CONT, PING, PONG = 0x1, 0x0, 0x9, 0xA


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, rsv1: bool = False, size: int = -1) -> bytes:
    """A client's frame, with a mask of zeros, which says that it is of ``size`` bytes."""
    size = len(data) if size < 0 else size
    head = bytes([fin << 7 | rsv1 << 6 | opcode])
    if size < 126:
        return head + bytes([0x80 | size]) + MASK + data
    if size < 65_536:
        return head + b"\xfe" + struct.pack("!H", size) + MASK + data
    return head + b"\xff" + struct.pack("!Q", size) + MASK + data


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(DEADLINE):
        first, second = await reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await reader.readexactly(2))
        return first & 0xF, await reader.readexactly(size)


async def closes_with(reader: asyncio.StreamReader) -> int:
    """Return the code of the close frame, which is the next frame."""
    opcode, data = await read_frame(reader)
    assert opcode == 0x8
    return int.from_bytes(data[:2], "big")


async def stats(server: Server) -> dict[str, Any]:
    return await server.get_json("/stats")


@pytest.fixture
async def server(name: str, log: Path) -> AsyncIterator[Server]:
    async with serve(APP, log, command=name, cwd=ROOT, probe="/stats") as server:
        yield server


async def opened(
    server: Server, path: str = "/room", more: str = ""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer, head = await handshake(server, path, more)
    assert head.startswith("HTTP/1.1 101 ")
    assert await read_frame(reader) == (TEXT, b"ready")
    return reader, writer


# One socket, one connection


@all_servers
@pytest.mark.parametrize("whose", ["same", "other"])
async def test_a_second_connection_on_a_socket_is_refused_and_the_first_continues(
    server: Server, whose: str
) -> None:
    async with connect(f"{server.ws}/twice/{whose}") as client:
        assert "Enter hub.connection(websocket) once for each socket" in str(await receive(client))
        await server.get_json("/say/hello")
        assert await receive(client) == "hello"
        await server.get_json("/release")
        assert (await closed(client))[0] == 1000


@all_servers
async def test_a_connection_on_a_socket_that_another_has_closed_is_refused(server: Server) -> None:
    async with connect(f"{server.ws}/again") as client:
        assert await receive(client) == "ready"
        assert (await closed(client))[0] == 1000
    await eventually(lambda: "RuntimeError: Expected a socket without a connection" in server.log)
    # It has neither accepted the socket again nor sent a message.
    assert server.log.count("RuntimeError") == 1


@both
@pytest.mark.parametrize("whose", ["same", "other"])
async def test_messages_for_a_client_that_has_left_reach_no_client_on_its_file_descriptor(
    server: Server, whose: str
) -> None:
    before = sockets(server)
    left = await connect(f"{server.ws}/twice/{whose}")
    assert await receive(left)
    its = sockets(server) - before
    assert its
    reset(left)
    # Its handler has not learned it yet.
    await eventually(lambda: not its & sockets(server))
    later = await asyncio.gather(*(connect(f"{server.ws}/plain") for _ in range(10)))
    for client in later:
        assert await receive(client) == "ready"
    for _ in range(3):
        await server.get_json("/say/secret")
    for client in later:
        await client.send("echo")
        assert await receive(client) == "4"
        await client.close()
    await server.get_json("/release")


# Pings


async def opened_deaf(server: Server, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect a client that reads only its first message, with as little buffered for it as possible."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(HANDSHAKE.format(path=path, more="").encode())
    async with asyncio.timeout(DEADLINE):
        await reader.readuntil(b"\r\n\r\n")
        assert await read_frame(reader) == (TEXT, b"ready")
    transport: Any = writer.transport
    transport.pause_reading()
    return reader, writer


@both
async def test_pings_of_a_client_that_does_not_read_take_no_memory(server: Server) -> None:
    before = (await stats(server))["resident_kib"]
    _, writer = await opened_deaf(server, "/room")
    pings = frame(PING, b"x" * 125) * 5000

    sent = 0

    async def flood() -> None:
        nonlocal sent
        with suppress(ConnectionError):
            while True:
                writer.write(pings)
                await writer.drain()
                sent += len(pings)

    flooding = asyncio.create_task(flood())

    async def it_is_disconnected() -> bool:
        now = await stats(server)
        assert now["resident_kib"] - before < 20_000
        return bool(now["slow_disconnects"])

    await eventually(it_is_disconnected)
    flooding.cancel()
    writer.transport.abort()
    # The server has read little of it: the rest is in the kernel's buffers on both sides.
    assert sent < 2 * 65_536 + 300_000 + KERNEL_BYTES


async def waits(server: Server) -> None:
    """Wait until messages wait for a client that does not read."""

    async def it_does() -> bool:
        return bool((await stats(server))["backlog"])

    await eventually(it_does)


@both
async def test_a_client_that_reads_late_gets_the_answer_to_its_latest_ping(server: Server) -> None:
    reader, writer = await opened_deaf(server, "/bytes/12000000")
    await waits(server)
    for number in range(1000):
        writer.write(frame(PING, b"%04d" % number))
    await writer.drain()
    transport: Any = writer.transport
    transport.resume_reading()
    pongs: list[bytes] = []
    texts = 0
    while pongs[-1:] != [b"0999"] or texts < 1201:
        opcode, data = await read_frame(reader)
        if opcode == PONG:
            pongs.append(data)
        else:
            texts += 1
    assert pongs == sorted(pongs)
    assert len(pongs) < 10
    writer.close()


@both
async def test_messages_behind_a_flood_of_pings_are_read(server: Server) -> None:
    reader, writer = await opened_deaf(server, "/bytes/12000000")
    await waits(server)
    # It is not read beyond 64 KiB of them.
    writer.write(frame(PING, b"x" * 100) * 20_000 + frame(PING, b"last"))
    transport: Any = writer.transport
    transport.resume_reading()
    while await read_frame(reader) != (PONG, b"last"):
        pass
    writer.close()


async def test_a_slow_client_that_still_reads_is_not_lost_to_keepalive(log: Path) -> None:
    command = (*SERVERS["uvicorn"], *PINGS)
    async with serve(APP, log, command=command, cwd=ROOT, probe="/stats") as server:
        # Its answers to pings come after all that was sent before them.
        client = await connect_deaf(f"{server.ws}/bytes/3000000")
        began = asyncio.get_running_loop().time()
        seen = 0
        while True:
            client.transport.resume_reading()
            text = await receive(client)
            client.transport.pause_reading()
            if text == "all":
                break
            seen += 1
            # 8 seconds at least, four times the time for an answer.
            await asyncio.sleep(max(0, began + seen * 8 / 300 - asyncio.get_running_loop().time()))
        assert seen == 300
        client.transport.resume_reading()
        await client.close()


async def test_a_client_that_answers_no_pings_is_closed(log: Path) -> None:
    command = (*SERVERS["uvicorn"], *PINGS)
    async with serve(APP, log, command=command, cwd=ROOT, probe="/stats") as server:
        reader, writer = await opened(server)
        while (frame := await read_frame(reader))[0] == PING:
            pass
        assert frame[0] == 0x8
        assert int.from_bytes(frame[1][:2], "big") == 1011
        writer.close()


# Sizes


@both
async def test_a_message_is_refused_when_its_length_is_known(server: Server) -> None:
    reader, writer = await opened(server)
    writer.write(frame(TEXT, b"x", size=LIMIT + 1))
    assert await closes_with(reader) == 1009
    writer.close()


@both
async def test_a_message_in_parts_is_refused_when_they_are_too_much(server: Server) -> None:
    reader, writer = await opened(server)
    writer.write(frame(TEXT, b"x" * 60_000, fin=False) + frame(CONT, b"x", fin=False, size=60_000))
    assert await closes_with(reader) == 1009
    writer.close()


@both
@pytest.mark.parametrize("size", [0, 1])
async def test_the_parts_of_a_message_are_counted(server: Server, size: int) -> None:
    reader, writer = await opened(server)
    writer.write(frame(TEXT, fin=False) + frame(CONT, b"x" * size, fin=False) * (LIMIT // 8))
    assert await closes_with(reader) == 1009
    writer.close()


@both
async def test_a_message_as_large_as_the_limit_is_taken(server: Server) -> None:
    async with connect(f"{server.ws}/room") as client:
        assert await receive(client) == "ready"
        await client.send("x" * LIMIT)
        assert await receive(client) == str(LIMIT)
        await client.send("x" * 1000 for _ in range(LIMIT // 1000))
        assert await receive(client) == str(LIMIT)


@both
async def test_an_endpoint_without_a_hub_has_uvicorns_limit(server: Server) -> None:
    async with connect(f"{server.ws}/plain") as client:
        assert await receive(client) == "ready"
        await client.send("x" * LIMIT * 10)
        assert await receive(client) == str(LIMIT * 10)


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate\r\n"


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_message_that_inflates_beyond_the_limit_is_refused_before_it_has(
    log: Path, parts: int
) -> None:
    """16 KB that are 16 MB, of many clients at once."""
    async with serve(APP, log, command="uvicorn", cwd=ROOT, probe="/stats") as server:
        lines = [await opened(server, more=DEFLATE) for _ in range(30)]
        before = (await stats(server))["peak_kib"]
        deflater = zlib.compressobj(9, zlib.DEFLATED, -12)
        bomb = deflater.compress(b"x" * 16_000_000) + deflater.flush(zlib.Z_SYNC_FLUSH)[:-4]
        if parts == 1:
            data = frame(TEXT, bomb, rsv1=True)
        else:
            data = frame(TEXT, bomb[:100], rsv1=True, fin=False) + frame(CONT, bomb[100:])
        for _, writer in lines:
            writer.write(data)
        for reader, writer in lines:
            assert await closes_with(reader) == 1009
            writer.close()
        assert (await stats(server))["peak_kib"] - before < 15_000


# Objects that are left


@pytest.mark.parametrize("name", ["hubbub run", "uvicorn", "uvicorn --ws", "uvicorn, compressed"])
@pytest.mark.parametrize("ends", ["close", "reset", "protocol error", "too big"])
async def test_closed_connections_are_gone_without_the_cyclic_collector(
    name: str, ends: str, log: Path
) -> None:
    options = {"compression": "deflate"} if "compressed" in name else {}
    command = name.partition(",")[0]
    env = {"NO_GC": "yes"}
    async with serve(APP, log, command=command, cwd=ROOT, probe="/stats", env=env) as server:
        for path in ("/room", "/plain"):
            clients = await asyncio.gather(*(connect(server.ws + path, **options) for _ in range(10)))
            for client in clients:
                assert await receive(client) == "ready"
                await client.send("x" * 50_000)
                while await receive(client) != "50000":
                    pass
            assert (await stats(server))["alive"]["ServerProtocol"] == 10
            for client in clients:
                match ends:
                    case "close":
                        await client.close()
                    case "reset":
                        reset(client)
                    case "protocol error":
                        client.transport.write(b"\xff" * 10)
                    case "too big":
                        client.transport.write(frame(TEXT, size=1 << 30))

            async def nothing_is_left() -> bool:
                return not (await stats(server))["alive"]

            await eventually(nothing_is_left)
