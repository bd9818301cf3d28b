"""The direct path under every way to start uvicorn, and the ways back to the queued path."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.clients import DEADLINE, closed, connect, eventually, http_client, receive
from tests.uvicorn_process import ROOT, SERVERS, Command, Server, serve

APP = "tests.apps.paths:app"
DIRECT = "Direct path: "
QUEUED = "Queued path"

UVICORN = SERVERS["uvicorn"]
PORT = ("--port", "{port}")
GUNICORN = ("gunicorn", "{target}", "--bind", "127.0.0.1:{port}")

#: Ways to start uvicorn without a word about Hubbub, and those with one.
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

Env = Mapping[str, str]


async def writers(server: Server) -> dict[str, int]:
    found: dict[str, int] = (await server.get_json("/paths"))["writers"]
    return found


def lines(server: Server, what: str) -> list[str]:
    return [line for line in server.log.splitlines() if what in line]


async def talks(server: Server, **options: Any) -> None:
    """A client connects, says something and hears it."""
    async with connect(f"{server.ws}/ws", **options) as client:
        assert await receive(client) == "ready"
        await client.send("hello")
        assert await receive(client) == "hello"


@pytest.mark.parametrize("starter", STARTERS)
async def test_the_path_is_direct_however_uvicorn_is_started(starter: str, log: Path) -> None:
    env = {"UVICORN_RELOAD_DELAY": "1"}
    workers = 2 if "workers" in starter and "gunicorn" not in starter else 1
    command = STARTERS[starter]
    async with serve(APP, log, command=command, cwd=ROOT, probe="/paths", env=env) as server:
        async with connect(f"{server.ws}/ws") as client:
            assert await receive(client) == "ready"
            if workers == 1:
                assert await writers(server) == {"SocketTransport": 1}
            await client.send("hello")
            assert await receive(client) == "hello"
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
async def test_otherwise_it_is_queued_and_one_line_says_why(
    args: Command, env: Env, reason: str, log: Path
) -> None:
    command = (*UVICORN, *args)
    async with serve(APP, log, command=command, cwd=ROOT, probe="/paths", env=env) as server:
        async with connect(f"{server.ws}/ws") as client, connect(f"{server.ws}/ws") as other:
            for each in (client, other):
                assert await receive(each) == "ready"
            assert await writers(server) == {"ASGITransport": 2}
            await other.send("hello")
            assert await receive(client) == "hello"
        (line,) = lines(server, QUEUED)
        assert reason in line
        await server.stop()


async def test_a_middleware_that_wraps_send_sees_every_message(log: Path) -> None:
    env = {"WRAPS": "send"}
    async with serve(APP, log, command="uvicorn", cwd=ROOT, probe="/paths", env=env) as server:
        await talks(server)
        assert (await server.get_json("/paths"))["seen"]["websocket.send"] == 2


async def test_a_middleware_that_wraps_receive_sees_every_message_on_the_direct_path(log: Path) -> None:
    env = {"WRAPS": "receive"}
    async with serve(APP, log, command="uvicorn", cwd=ROOT, probe="/paths", env=env) as server:
        async with connect(f"{server.ws}/ws") as client:
            assert await receive(client) == "ready"
            assert await writers(server) == {"SocketTransport": 1}
            await client.send("hello")
            assert await receive(client) == "hello"
        assert (await server.get_json("/paths"))["seen"]["websocket.receive"] == 1


async def test_a_hub_that_starts_outside_of_the_lifespan_adopts_the_server_with_its_first_socket(
    log: Path,
) -> None:
    env = {"NO_ROUTER": "yes"}
    command = (*UVICORN, "--lifespan", "off")
    async with serve(APP, log, command=command, cwd=ROOT, probe="/paths", env=env) as server:
        async with connect(f"{server.ws}/ws") as first, connect(f"{server.ws}/ws") as second:
            for client in (first, second):
                assert await receive(client) == "ready"
            assert await writers(server) == {"ASGITransport": 1, "SocketTransport": 1}
            await second.send("hello")
            assert {await receive(first), await receive(second)} == {"hello"}
        assert lines(server, DIRECT)


async def test_it_is_direct_over_tls(log: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    identity = authority.issue_cert("127.0.0.1")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    identity.private_key_pem.write_to_path(key)
    identity.cert_chain_pems[0].write_to_path(certificate)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    command = (*UVICORN, "--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))
    async with serve(APP, log, command=command, cwd=ROOT, probe=None) as server:
        await eventually(lambda: "Uvicorn running on https" in server.log)
        url = f"wss://127.0.0.1:{server.port}/ws"
        async with connect(url, ssl=context) as client, http_client(verify=context) as http:
            assert await receive(client) == "ready"
            answer = await http.get(f"https://127.0.0.1:{server.port}/paths")
            assert answer.json()["writers"] == {"SocketTransport": 1}
            await client.send("hello")
            assert await receive(client) == "hello"


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_clients_that_offer_compression_and_others_hear_the_same(
    compression: str | None, log: Path
) -> None:
    async with (
        serve(APP, log, command="uvicorn", cwd=ROOT, probe="/paths") as server,
        connect(f"{server.ws}/ws", compression=compression) as client,
    ):
        assert await receive(client) == "ready"
        assert await writers(server) == {"SocketTransport": 1}
        for size in (1, 1000, 100_000):
            await client.send("x" * size)
            assert await receive(client) == "x" * size


@pytest.mark.parametrize("name", ["uvicorn", "hubbub run", "uvicorn queued"])
async def test_two_tasks_of_a_plain_endpoint_may_receive(name: str, log: Path) -> None:
    async with (
        serve(APP, log, command=name, cwd=ROOT, probe="/paths") as server,
        connect(f"{server.ws}/plain") as client,
    ):
        assert await receive(client) == "ready"
        for turn in range(3):
            for _ in range(2):
                await client.send(str(turn))
            assert {await receive(client), await receive(client)} == {f"first: {turn}", f"second: {turn}"}


# Shutdown


async def test_at_shutdown_all_are_told_to_reconnect_but_not_all_at_once(log: Path) -> None:
    async with serve("chat:app", log, command="uvicorn") as server:
        clients = await asyncio.gather(*(connect(f"{server.ws}/ws/{number}") for number in range(300)))
        closing = [asyncio.create_task(closed(client)) for client in clients]
        server.process.send_signal(signal.SIGINT)
        first, later = await asyncio.wait(closing, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        assert first
        assert later
        assert {await ending for ending in closing} == {(1012, "")}
        await server.stop()
    assert "Traceback" not in server.log


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
async def test_a_stream_that_is_told_ends_when_the_server_stops(
    starter: str, sig: signal.Signals, log: Path
) -> None:
    # A time that the test could not wait for.
    args = ("--drain-seconds", "3600") if starter == "hubbub run" else ()
    command = (*STARTERS[starter], *args)
    async with (
        serve(APP, log, command=command, cwd=ROOT, probe="/paths") as server,
        http_client() as client,
        client.stream("GET", server.http + "/ending") as answer,
    ):
        text = answer.aiter_text()
        assert await anext(text) == "data: ready\n\n"
        server.process.send_signal(sig)
        # The response is complete: it does not break off.
        assert [part async for part in text] == []
        async with asyncio.timeout(DEADLINE):
            await server.process.wait()
    assert "The stream was closed." in server.log
    assert "Traceback" not in server.log
    assert "timeout graceful shutdown exceeded" not in server.log


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn queued"])
async def test_a_stream_that_never_ends_does_not_keep_the_server_from_ending(name: str, log: Path) -> None:
    async with (
        serve(APP, log, command=name, cwd=ROOT, probe="/paths") as server,
        http_client() as client,
        client.stream("GET", server.http + "/endless") as answer,
    ):
        text = answer.aiter_text()
        assert await anext(text) == "data: ready\n\n"
        # It would wait without an end.
        await server.stop(signal.SIGINT, timeout=40)
    assert "Cancel 1 running task(s), timeout graceful shutdown exceeded" in server.log
    assert "Application shutdown complete" in server.log


async def test_a_time_that_the_user_gave_for_the_shutdown_holds(log: Path) -> None:
    command = (*UVICORN, "--timeout-graceful-shutdown", "1")
    async with (
        serve(APP, log, command=command, cwd=ROOT, probe="/paths") as server,
        http_client() as client,
        client.stream("GET", server.http + "/endless") as answer,
    ):
        text = answer.aiter_text()
        assert await anext(text) == "data: ready\n\n"
        # Less than the 10 seconds that it would be otherwise.
        await server.stop(signal.SIGINT, timeout=9)
