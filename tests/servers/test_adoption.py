"""The direct path under every way to start uvicorn, and the cases in which the path is queued."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trustme
from websockets.asyncio.client import ClientConnection

from tests.clients import DEADLINE, closed, connect, eventually, http_client, receive
from tests.uvicorn_process import ROOT, SERVERS, Command, Server, serve

APP = "tests.apps.paths:app"
DIRECT = "Direct path: "
QUEUED = "Queued path"

UVICORN = SERVERS["uvicorn"]
PORT = ("--port", "{port}")
GUNICORN = ("gunicorn", "{target}", "--bind", "127.0.0.1:{port}")

#: Ways to start uvicorn without an option for Hubbub, and those with one.
STARTERS: dict[str, Command] = {
    "uvicorn": UVICORN,
    "uvicorn, h11 and asyncio": (*UVICORN, "--http", "h11", "--loop", "asyncio"),
    "uvicorn --reload": (*UVICORN, "--reload"),
    "uvicorn --workers": (*UVICORN, "--workers", "2"),
    "fastapi run": ("fastapi", "run", *PORT, "--entrypoint", "{target}"),
    "fastapi dev": ("fastapi", "dev", *PORT, "--entrypoint", "{target}"),
    "gunicorn": (*GUNICORN, "--worker-class", "uvicorn_worker.UvicornWorker"),
    "gunicorn, uvicorn.workers": (*GUNICORN, "--worker-class", "uvicorn.workers.UvicornWorker"),
    "uvicorn.Server": ("python", "-m", "tests.apps.programmatic", "{port}"),
    "hubbub run": SERVERS["hubbub run"],
    "uvicorn --ws": SERVERS["uvicorn --ws"],
}

Env: TypeAlias = Mapping[str, str]
Start: TypeAlias = Callable[..., AbstractAsyncContextManager[Server]]


@pytest.fixture
def start(log: Path) -> Start:
    """Starts a server for ``APP``, as :func:`serve` does."""
    return partial(serve, APP, log, cwd=ROOT, probe="/paths")


@asynccontextmanager
async def subscriber(server: Server, **options: Any) -> AsyncIterator[ClientConnection]:
    """A client that is subscribed to the app's channel."""
    async with connect(f"{server.ws}/ws", **options) as client:
        assert await receive(client) == "ready"
        yield client


async def publish(client: ClientConnection, text: str = "hello") -> None:
    """Publish through ``client``, and check that the client receives the publication."""
    await client.send(text)
    assert await receive(client) == text


async def paths(server: Server) -> dict[str, Any]:
    return await server.get_json("/paths")


def lines(server: Server, text: str) -> list[str]:
    return [line for line in server.log.splitlines() if text in line]


# The choice of the path


@pytest.mark.parametrize("starter", STARTERS)
async def test_the_path_is_direct_however_uvicorn_is_started(starter: str, start: Start) -> None:
    workers = 2 if starter == "uvicorn --workers" else 1
    async with start(command=STARTERS[starter], env={"UVICORN_RELOAD_DELAY": "1"}) as server:
        async with subscriber(server) as client:
            if workers == 1:
                assert (await paths(server))["writers"] == {"SocketTransport": 1}
            await publish(client)
        await eventually(lambda: len(lines(server, DIRECT)) == workers)
        assert not lines(server, QUEUED)
        assert await server.stop() in (0, -signal.SIGTERM)
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("args", "env", "reason"),
    [
        (("--ws", "websockets-sansio"), {}, "since uvicorn was started with --ws websockets-sansio."),
        (("--ws", "websockets"), {}, "since uvicorn was started with --ws websockets."),
        (("--ws", "wsproto"), {}, "since uvicorn was started with --ws wsproto."),
        ((), {"UVICORN_WS": "wsproto"}, "since uvicorn was started with --ws wsproto."),
        ((), {"WRAPS": "send"}, "behind tests.apps.paths.Watching.__call__.watched_send, which wraps send"),
        (("--log-level", "trace"), {}, "behind uvicorn.middleware.message_logger.MessageLoggerMiddleware"),
    ],
    ids=str,
)
async def test_otherwise_the_path_is_queued_and_one_line_says_why(
    args: Command, env: Env, reason: str, start: Start
) -> None:
    async with start(command=UVICORN, args=args, env=env) as server:
        async with subscriber(server) as first, subscriber(server) as second:
            assert (await paths(server))["writers"] == {"ASGITransport": 2}
            await publish(second)
            assert await receive(first) == "hello"
        (line,) = lines(server, QUEUED)
        assert reason in line


@pytest.mark.parametrize(
    ("wrapped", "writer", "seen"),
    [
        ("send", "ASGITransport", {"websocket.send": 2}),
        ("receive", "SocketTransport", {"websocket.receive": 1}),
    ],
)
async def test_a_middleware_sees_every_message(
    wrapped: str, writer: str, seen: dict[str, int], start: Start
) -> None:
    async with start(command="uvicorn", env={"WRAPS": wrapped}) as server, subscriber(server) as client:
        await publish(client)
        found = await paths(server)
        assert found["writers"] == {writer: 1}
        assert found["seen"].items() >= seen.items()


async def test_a_hub_that_starts_outside_of_the_lifespan_adopts_the_server_with_its_first_socket(
    start: Start,
) -> None:
    command = (*UVICORN, "--lifespan", "off")
    async with start(command=command, env={"NO_ROUTER": "yes"}) as server:
        async with subscriber(server) as first, subscriber(server) as second:
            assert (await paths(server))["writers"] == {"ASGITransport": 1, "SocketTransport": 1}
            await publish(second)
            assert await receive(first) == "hello"
        assert lines(server, DIRECT)


# Connections on the direct path


async def test_the_path_is_direct_over_tls(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    identity = authority.issue_cert("127.0.0.1")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    identity.private_key_pem.write_to_path(key)
    identity.cert_chain_pems[0].write_to_path(certificate)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    command = (*UVICORN, "--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))
    async with start(command=command, probe=None) as server:
        await eventually(lambda: "Uvicorn running on https" in server.log)
        url = f"wss://127.0.0.1:{server.port}/ws"
        async with connect(url, ssl=context) as client, http_client(verify=context) as http:
            assert await receive(client) == "ready"
            answer = await http.get(f"https://127.0.0.1:{server.port}/paths")
            assert answer.json()["writers"] == {"SocketTransport": 1}
            await publish(client)


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_a_client_that_offers_compression_receives_the_same_messages(
    compression: str | None, start: Start
) -> None:
    async with start(command="uvicorn") as server, subscriber(server, compression=compression) as client:
        assert (await paths(server))["writers"] == {"SocketTransport": 1}
        for size in (1, 1000, 100_000):
            await publish(client, "x" * size)


@pytest.mark.parametrize("name", ["uvicorn", "hubbub run", "uvicorn queued"])
async def test_two_tasks_of_an_endpoint_without_a_hub_may_receive(name: str, start: Start) -> None:
    async with start(command=name) as server, connect(f"{server.ws}/plain") as client:
        assert await receive(client) == "ready"
        for turn in range(3):
            for _ in range(2):
                await client.send(str(turn))
            assert {await receive(client), await receive(client)} == {f"first: {turn}", f"second: {turn}"}


# Shutdown


async def test_at_shutdown_connections_are_closed_one_after_another(log: Path) -> None:
    async with serve("chat:app", log, command="uvicorn") as server:
        clients = await asyncio.gather(*(connect(f"{server.ws}/ws/{number}") for number in range(300)))
        closing = [asyncio.create_task(closed(client)) for client in clients]
        server.process.send_signal(signal.SIGINT)
        first, later = await asyncio.wait(closing, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        assert first
        assert later
        assert {await each for each in closing} == {(1012, "")}
        await server.stop()
    assert "Traceback" not in server.log


@asynccontextmanager
async def stream(server: Server, path: str) -> AsyncIterator[AsyncIterator[str]]:
    """The text of a response that streams events, after its first event."""
    async with http_client() as client, client.stream("GET", server.http + path) as answer:
        text = answer.aiter_text()
        assert await anext(text) == "data: ready\n\n"
        yield text


@pytest.mark.parametrize(
    ("starter", "sig"),
    [
        *(("uvicorn", sig) for sig in (signal.SIGINT, signal.SIGTERM)),
        *(("hubbub run", sig) for sig in (signal.SIGINT, signal.SIGTERM)),
        ("fastapi run", signal.SIGINT),
        # gunicorn drops its connections at SIGINT.
        ("gunicorn", signal.SIGTERM),
        ("uvicorn.Server", signal.SIGTERM),
    ],
)
async def test_a_stream_inside_stopping_ends_when_the_server_stops(
    starter: str, sig: signal.Signals, start: Start
) -> None:
    # Longer than the test could wait.
    args = ("--drain-seconds", "3600") if starter == "hubbub run" else ()
    async with start(command=STARTERS[starter], args=args) as server, stream(server, "/ending") as text:
        server.process.send_signal(sig)
        # The response is complete: reading it raises no error.
        assert [part async for part in text] == []
        async with asyncio.timeout(DEADLINE):
            await server.process.wait()
    assert "The stream was closed." in server.log
    assert "Traceback" not in server.log
    assert "timeout graceful shutdown exceeded" not in server.log


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn queued"])
async def test_an_endless_stream_does_not_keep_the_server_from_ending(name: str, start: Start) -> None:
    async with start(command=name) as server, stream(server, "/endless"):
        # uvicorn by itself would wait without a limit.
        await server.stop(signal.SIGINT, timeout=40)
    assert "Cancel 1 running task(s), timeout graceful shutdown exceeded" in server.log
    assert "Application shutdown complete" in server.log


async def test_the_user_s_own_time_for_the_shutdown_is_kept(start: Start) -> None:
    command = (*UVICORN, "--timeout-graceful-shutdown", "1")
    async with start(command=command) as server, stream(server, "/endless"):
        # Less than Hubbub's own 10 seconds.
        await server.stop(signal.SIGINT, timeout=9)
