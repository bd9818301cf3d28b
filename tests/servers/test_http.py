"""Limits that HubHTTPProtocol adds to uvicorn's protocol, on a client until its request has arrived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
import pytest_asyncio
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from hubbub.servers.http import HubHTTPProtocol
from hubbub.servers.limits import MAX_HEAD
from tests.clients import DEADLINE, eventually, exchange
from tests.servers.test_handshake import request
from tests.uvicorn_process import ROOT, Server, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: The head of a request, without its end.
HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    log = tmp_path_factory.mktemp("http") / "server.log"
    async with serve("tests.apps.handshakes:app", log, cwd=ROOT) as server:
        yield server
    assert "Traceback" not in server.log


async def trickle(server: Server, first: bytes, then: bytes) -> bytes:
    """Send ``first``, then ``then`` repeatedly until the server closes. Returns the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(first)
    answer = asyncio.create_task(reader.read())
    try:
        async with asyncio.timeout(DEADLINE):
            while not answer.done():
                writer.write(then)
                await asyncio.wait([answer], timeout=0.2)
            return answer.result()
    finally:
        answer.cancel()
        writer.close()


async def test_connections_of_clients_that_never_complete_a_head_are_closed(server: Server) -> None:
    answers = await asyncio.gather(
        trickle(server, b"", b""),
        trickle(server, b"", b"\r\n"),
        trickle(server, HEAD, b"X: y\r\n"),
        trickle(server, HEAD + b"Cookie: ", b"x"),
        # After an answered request, whose keep-alive timeout is stopped by the next byte.
        trickle(server, HEAD + b"\r\n" + HEAD, b"X: y\r\n"),
        trickle(server, HEAD + b"\r\n", b"\r\n"),
    )
    assert set(answers[:4]) == {b""}
    assert all(answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in answers[4:])
    assert all(answer.count(b"HTTP/1.1") == 1 for answer in answers[4:])


async def test_a_body_may_take_longer_than_a_head(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /size HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    for _ in range(12):
        writer.write(b"1\r\nx\r\n")
        await asyncio.sleep(1)
    writer.write(b"0\r\n\r\n")
    async with asyncio.timeout(DEADLINE):
        assert (await reader.read()).endswith(b"\r\n\r\n12")
    writer.close()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(b"Cookie: " + b"x" * MAX_HEAD + b"\r\n", id="one header"),
        pytest.param(b"X: y\r\n" * (MAX_HEAD // 4), id="many headers"),
        pytest.param(b"Cookie: " + b"x" * 5_000_000 + b"\r\n", id="a lot"),
    ],
)
async def test_a_head_over_the_limit_is_answered_with_431(server: Server, more: bytes) -> None:
    answer = await exchange(server.port, HEAD + more + CLOSE)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert answer.endswith(f"The request head has more than {MAX_HEAD} bytes.".encode())


async def test_a_target_over_the_limit_is_answered_with_431(server: Server) -> None:
    answer = await exchange(server.port, b"GET /" + b"x" * MAX_HEAD + HEAD[5:] + CLOSE)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_head_without_an_end_is_answered_with_431(server: Server) -> None:
    answer = await trickle(server, HEAD, b"Cookie: " + b"x" * 20_000)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_trailers_over_the_limit_are_answered_with_an_error(server: Server) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    answer = await trickle(server, head, b"X: y\r\n" * 1000)
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 405 "))


async def test_a_trailer_without_an_end_is_answered_with_431(server: Server) -> None:
    head = b"POST /size HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: "
    assert (await trickle(server, head, b"x" * 20_000)).startswith(b"HTTP/1.1 431 ")


async def test_large_chunks_are_accepted(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = b"POST /size HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    writer.write(head + CLOSE)
    for _ in range(3):
        # The head of a chunk and its data, in separate packets.
        for piece in (b"30d40\r\n", b"x" * 100_000, b"x" * 100_000, b"\r\n"):
            writer.write(piece)
            await writer.drain()
            await server.get_json("/")
    writer.write(b"0\r\n\r\n")
    async with asyncio.timeout(DEADLINE):
        assert (await reader.read()).endswith(b"\r\n\r\n600000")
    writer.close()


async def test_a_websocket_behind_a_request_that_is_not_answered_is_refused(server: Server) -> None:
    """The handler of the earlier request notices the disconnect."""
    answer = await exchange(server.port, HEAD.replace(b"/", b"/stuck", 1) + b"\r\n" + request())
    assert answer == b""
    async with asyncio.timeout(DEADLINE):
        await server.get_json("/left")


async def test_nothing_is_read_while_pipelined_requests_wait() -> None:
    waiting: list[int] = []
    protocols: list[HubHTTPProtocol] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        waiting.append(len(protocols[0].pipeline))
        # Meanwhile the client has time to send more.
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(app, lifespan="off", log_level="error")
    config.load()

    def connect() -> HubHTTPProtocol:
        protocols.append(HubHTTPProtocol(config=config, server_state=ServerState(), app_state={}))
        return protocols[-1]

    requests = 20_000
    async with await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0) as listening:
        port: int = listening.sockets[0].getsockname()[1]
        answer = await exchange(port, (HEAD + b"\r\n") * (requests - 1) + HEAD + CLOSE)
    assert answer.count(b"HTTP/1.1 204") == requests
    # More requests are read only when none is waiting.
    assert max(waiting) > 1
    assert all(later < before for before, later in pairwise(waiting) if before)


async def test_a_head_over_the_limit_is_logged_once(server: Server) -> None:
    await eventually(lambda: "Refused a request head of more than 65536 bytes with 431." in server.log)
    assert server.log.count("Refused a request head") <= 2


async def test_a_head_below_the_limit_and_a_body_above_it_are_accepted(server: Server) -> None:
    head = b"POST /size HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n"
    cookie = b"Cookie: " + b"x" * (MAX_HEAD - 1000) + b"\r\n"
    answer = await exchange(server.port, head + cookie + CLOSE + b"x" * 300_000)
    assert answer.endswith(b"\r\n\r\n300000")


async def test_garbage_is_answered_and_not_logged(server: Server) -> None:
    before = server.log
    for garbage in [
        b"\x16\x03\x01\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        HEAD + b"\x00: y\r\n\r\n",
    ]:
        assert (await exchange(server.port, garbage)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert server.log == before
