"""The opening handshake: requests that RFC 6455 allows are accepted, and all others are answered."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import pytest
import pytest_asyncio

from hubbub.servers.handshake import HandshakeRefused, read_request
from hubbub.servers.limits import MAX_HEAD
from tests.clients import DEADLINE, eventually, exchange, frame
from tests.uvicorn_process import ROOT, Server, serve

TEXT, CLOSE, PING = 1, 8, 9

UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
HOST = "Host: localhost\r\n"
VERSION = "Sec-WebSocket-Version: 13\r\n"


def request(
    *more: str, target: str = "/ws", host: str = HOST, version: str = VERSION, http: str = "HTTP/1.1"
) -> bytes:
    lines = "".join(f"{line}\r\n" for line in more)
    return f"GET {target} {http}\r\n{host}{UPGRADE}{version}{lines}\r\n".encode("latin-1")


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# Parsing


def refused(head: bytes) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        read_request(head)
    return caught.value


def test_a_request_is_parsed() -> None:
    read = read_request(request("Cookie: a=b", "Cookie: c=d", target="/ws/1?x=y"))
    assert (read.method, read.path, read.protocol) == ("GET", "/ws/1?x=y", "HTTP/1.1")
    assert read.headers["Host"] == "localhost"
    assert read.headers.get_all("cookie") == ["a=b", "c=d"]


def test_white_space_around_a_value_is_not_part_of_it() -> None:
    assert read_request(request("X: \t a b \t")).headers["X"] == "a b"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://example.com/ws?x=y", "/ws?x=y"),
        ("HTTPS://example.com/ws", "/ws"),
        ("ws://example.com", "/"),
        ("wss://example.com?x=/y", "/?x=/y"),
    ],
)
def test_the_host_of_an_absolute_target_replaces_the_host_header(target: str, path: str) -> None:
    read = read_request(request(target=target))
    assert (read.path, read.headers.get_all("Host")) == (path, ["example.com"])


@pytest.mark.parametrize("target", ["*", "ws", "ftp://example.com/ws", "http:///ws", "http://a@b/ws", "é"])
def test_an_invalid_target_is_refused(target: str) -> None:
    assert refused(request(target=target)).status == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize("host", ["", "Host:\r\n", "Host: a\r\nHost: b\r\n"])
def test_a_request_without_exactly_one_host_is_refused(host: str) -> None:
    assert refused(request(host=host)).status == HTTPStatus.BAD_REQUEST


def test_a_head_over_the_limit_is_refused() -> None:
    assert read_request(request(f"X: {'x' * (MAX_HEAD - len(request()) - 5)}")).path == "/ws"
    assert refused(request(f"X: {'x' * (MAX_HEAD - len(request()) - 4)}")).status == 431


# On servers


@pytest_asyncio.fixture(params=["hubbub run", "uvicorn --ws"])
async def server(request: pytest.FixtureRequest, log: Path) -> AsyncIterator[Server]:
    async with serve("tests.apps.handshakes:app", log, command=request.param, cwd=ROOT) as server:
        yield server
        # uvicorn ends a clean shutdown by raising the signal again.
        assert await server.stop() == (0 if request.param == "hubbub run" else -signal.SIGTERM)
    assert "Traceback" not in server.log
    assert "Error" not in server.log


async def test_every_request_that_rfc_6455_allows_is_accepted(server: Server) -> None:
    for sent, expected in {
        request(): "welcome localhost 5 0",
        request(f"Cookie: {'a' * 9000}"): "welcome localhost 6 0",
        request(target=f"/ws?{'a' * 9000}"): "welcome localhost 5 9000",
        request(*[f"X-{number}: 1" for number in range(130)]): "welcome localhost 135 0",
        request("Content-Length: 0"): "welcome localhost 6 0",
        request("X: \xe9"): "welcome localhost 6 0",
        request(target="http://example.com/ws?x"): "welcome example.com 5 1",
        request().replace(b": ", b": \t ").replace(b"t\r\n", b"t \t\r\n"): "welcome localhost 5 0",
    }.items():
        answer = await exchange(server.port, sent, until=expected.encode())
        assert status(answer) == 101


async def test_each_refused_handshake_is_answered_with_its_status(server: Server) -> None:
    for sent, expected in {
        request("Content-Length: 5"): 400,
        request("Content-Length: 5") + b"hello": 400,
        request("Transfer-Encoding: chunked"): 400,
        request("Transfer-Encoding: chunked") + b"0\r\n\r\n": 400,
        request(host=""): 400,
        request(version=""): 426,
        request(version="Sec-WebSocket-Version: 8\r\n"): 426,
        request("Sec-WebSocket-Key: twice"): 400,
        request().replace(b"GET", b"PUT"): 405,
        request(target="/nowhere"): 403,
    }.items():
        assert status(await exchange(server.port, sent)) == expected


async def test_the_answer_to_a_wrong_version_names_the_right_one(server: Server) -> None:
    answer = await exchange(server.port, request(version="Sec-WebSocket-Version: 8\r\n"))
    lines = answer.lower().split(b"\r\n")
    assert b"sec-websocket-version: 13" in lines
    assert b"upgrade: websocket" in lines


async def test_frames_before_the_answer_are_handled_after_it(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request(target="/slow"))
    await server.get_json("/waiting")
    writer.write(frame(PING, b"early") + frame(TEXT, b"hello") + frame(0xF, b"bad"))
    await writer.drain()
    await server.get_json("/")
    await server.get_json("/go")
    async with asyncio.timeout(DEADLINE):
        answer = await reader.read()
    writer.close()
    head, _, frames = answer.partition(b"\r\n\r\n")
    assert status(head) == 101
    # A pong; perhaps the echo, which races with the invalid frame; then the close.
    assert frames.startswith(b"\x8a\x05early")
    assert b"\x03\xea" in frames  # 1002


async def test_a_client_that_disconnects_before_the_answer_is_no_error(server: Server) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request(target="/slow"))
    await server.get_json("/waiting")
    writer.close()
    await writer.wait_closed()
    await server.get_json("/go")
    await exchange(server.port, request(), until=b"welcome")


async def test_a_frame_in_the_same_packet_is_not_lost(log: Path) -> None:
    async with serve("tests.apps.handshakes:app", log, cwd=ROOT) as server:
        sent = request() + frame(TEXT, b"first")
        assert b"\x81\x05first" in await exchange(server.port, sent, until=b"first")


async def test_an_upgrade_in_http_1_0_is_refused(log: Path) -> None:
    async with serve("tests.apps.handshakes:app", log, cwd=ROOT) as server:
        assert status(await exchange(server.port, request(http="HTTP/1.0"))) == 400


async def test_a_shutdown_ends_a_pending_handshake(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request(target="/patient"))
    await server.get_json("/waiting")
    server.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(DEADLINE):
        assert status(await reader.read()) == 500
        await server.process.wait()
    writer.close()


async def test_text_that_is_not_utf_8_is_closed_with_1007(server: Server) -> None:
    not_utf_8 = frame(TEXT, b"\xff\xfe")
    halves = frame(TEXT, b"\xff", fin=False) + frame(0, b"\xfe")
    for sent in [not_utf_8, halves, not_utf_8 + frame(CLOSE, b"\x03\xe8"), not_utf_8 + frame(0xF, b"")]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(DEADLINE):
            writer.write(request())
            await reader.readuntil(b"welcome localhost 5 0")
            writer.write(frame(TEXT, b"good") + sent)
            answer = await reader.read()
        writer.close()
        # One close frame, and nothing after it.
        opcode, size = answer[-2 - len(b"\x03\xefinvalid UTF-8") :][:2]
        assert (opcode, size) == (0x88, 15)
        assert answer.endswith(b"\x03\xefinvalid UTF-8")


async def test_a_message_before_an_invalid_frame_is_not_lost(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request())
    async with asyncio.timeout(DEADLINE):
        await reader.readuntil(b"welcome localhost 5 0")
        writer.write(frame(TEXT, b"kept") + frame(PING, b"ping") + frame(0xF, b"bad"))
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"\x8a\x04ping\x88")
    assert answer[8:10] == b"\x03\xea"  # 1002

    async def is_received() -> bool:
        return bool(await server.get_json("/received"))

    await eventually(is_received)
