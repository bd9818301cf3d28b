"""A hub on memory:// does not start in a second worker of a server, whichever server it is."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from websockets.exceptions import WebSocketException

from hubbub import Hub, InvalidURL
from hubbub.servers import workers
from tests.clients import connect, eventually, receive
from tests.uvicorn_process import Command, Server, serve

#: Seconds after which a test gives up.
DEADLINE = 60.0

APP = """
import asyncio
import os
from fastapi import FastAPI, WebSocket
from hubbub import Hub

hub = Hub({url!r})
app = FastAPI()
app.include_router(hub.router)

@app.websocket("/ws")
async def ws(websocket: WebSocket):
    async with hub.connection(websocket) as client:
        await client.send(os.getpid())
        async for _ in client.iter_text():
            pass

@app.websocket("/stays")
async def stays(websocket: WebSocket):
    await ws(websocket)
    while not os.path.exists("leave"):
        await asyncio.sleep(0.05)
"""

GUNICORN = ("gunicorn", "{target}", "-b", "127.0.0.1:{port}", "-k", "uvicorn.workers.UvicornWorker")

WORKERS: dict[str, Command] = {
    "uvicorn": ("uvicorn", "{target}", "--port", "{port}", "--workers"),
    "fastapi": ("fastapi", "run", "app.py", "--port", "{port}", "--workers"),
    "gunicorn": (*GUNICORN, "-w"),
    "gunicorn --preload": (*GUNICORN, "--preload", "-w"),
    "hypercorn": ("hypercorn", "{target}", "--bind", "127.0.0.1:{port}", "--workers"),
    "granian": (
        *("granian", "{target}", "--interface", "asgi", "--host", "127.0.0.1"),
        *("--port", "{port}", "--workers"),
    ),
}

RELOADERS: dict[str, Command] = {
    "hubbub": ("hubbub", "run", "{target}", "--port", "{port}", "--reload"),
    "uvicorn": ("uvicorn", "{target}", "--port", "{port}", "--reload"),
    "fastapi": ("fastapi", "dev", "app.py", "--port", "{port}"),
}

#: In the log of a worker whose hub does not start.
REFUSED = "another worker of this server has started such a hub"


def app(folder: Path, url: str = "memory://") -> Path:
    (folder / "app.py").write_text(APP.format(url=url))
    return folder


@asynccontextmanager
async def serving(
    command: Command, log: Path, folder: Path, *args: str, probe: str | None = "/docs"
) -> AsyncIterator[Server]:
    # gunicorn creates a socket in the home directory.
    env = {"HOME": str(folder), "PYTHONWARNINGS": "ignore"}
    async with serve("app:app", log, command=command, args=args, cwd=folder, probe=probe, env=env) as server:
        yield server


@pytest.mark.parametrize("name", WORKERS)
async def test_several_workers_are_refused_with_advice(name: str, log: Path, tmp_path: Path) -> None:
    async with serving(WORKERS[name], log, app(tmp_path), "2", probe=None) as server:
        async with asyncio.timeout(DEADLINE):
            await server.process.wait()
        text = " ".join(server.log.split())
        assert REFUSED in text
        assert "Give Hub() the URL of an engine that reaches across processes" in text
        assert 'Hub("memory://?alone=yes")' in text


@pytest.mark.parametrize("name", WORKERS)
async def test_one_worker_starts(name: str, log: Path, tmp_path: Path) -> None:
    async with (
        serving(WORKERS[name], log, app(tmp_path), "1") as server,
        connect(f"{server.ws}/ws") as client,
    ):
        assert await receive(client)
        assert REFUSED not in server.log


@pytest.mark.parametrize("url", ["memory://?alone=yes", "sqlite:///hub.db"])
async def test_several_workers_start_with_an_engine_that_allows_it(
    url: str, log: Path, tmp_path: Path
) -> None:
    async with serving(WORKERS["uvicorn"], log, app(tmp_path, url), "2") as server, AsyncExitStack() as stack:
        pids: set[object] = set()

        async def both() -> bool:
            pids.add(await receive(await stack.enter_async_context(connect(f"{server.ws}/ws"))))
            return len(pids) == 2

        await eventually(both)


@pytest.mark.parametrize("name", RELOADERS)
async def test_a_worker_under_a_reloader_starts_again_after_a_change(
    name: str, log: Path, tmp_path: Path
) -> None:
    async with serving(RELOADERS[name], log, app(tmp_path)) as server:
        async with connect(f"{server.ws}/ws") as client:
            first = await receive(client)
        (tmp_path / "app.py").touch()

        async def another() -> bool:
            try:
                async with connect(f"{server.ws}/ws") as client:
                    return await receive(client) != first
            except (OSError, WebSocketException):
                return False

        await eventually(another, timeout=DEADLINE)
        assert REFUSED not in server.log


async def test_a_worker_waits_for_the_one_that_it_replaces(log: Path, tmp_path: Path) -> None:
    async with serving(WORKERS["gunicorn"], log, app(tmp_path), "1") as server:
        async with connect(f"{server.ws}/stays") as client:
            first = await receive(client)
            # As if the worker had started long ago.
            os.utime(workers.lock_file(f"127.0.0.1:{server.port}"), (0, 0))
            server.process.send_signal(signal.SIGHUP)
            await client.wait_closed()
        await eventually(lambda: "waiting up to 20 s for it to stop" in server.log)
        (tmp_path / "leave").touch()

        async def another() -> bool:
            try:
                async with connect(f"{server.ws}/ws") as client:
                    return await receive(client) != first
            except (OSError, WebSocketException):
                return False

        await eventually(another)
        assert server.process.returncode is None
        assert REFUSED not in server.log


async def test_two_servers_are_not_workers_of_each_other(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            log = tmp_path / f"{name}.log"
            for command, args in ((WORKERS["gunicorn"], ("1",)), (WORKERS["uvicorn"][:-1], ())):
                server = await stack.enter_async_context(serving(command, log, app(folder), *args))
                assert REFUSED not in server.log


# In processes of the tests


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    """A bound socket, as a server has before it starts its workers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock
        # Killed workers do not remove it.
        lock_file(sock).unlink(missing_ok=True)


def lock_file(sock: socket.socket) -> Path:
    return workers.lock_file(f"127.0.0.1:{sock.getsockname()[1]}")


def _worker(sock: socket.socket, pipe: Connection) -> None:
    """Start a hub, send the outcome, and keep the hub running until the other end answers."""

    async def serve() -> None:
        try:
            async with Hub():
                pipe.send("started")
                await asyncio.to_thread(pipe.poll, None)
        except InvalidURL:
            pipe.send("refused")

    asyncio.run(serve())


class Worker:
    """A process that has inherited a socket and starts a hub."""

    def __init__(self, sock: socket.socket) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_worker, args=(sock, theirs))
        self.process.start()

    async def outcome(self) -> str:
        assert await asyncio.to_thread(self._pipe.poll, DEADLINE)
        return str(self._pipe.recv())

    def end(self) -> None:
        self.process.kill()
        self.process.join()


async def test_a_killed_worker_can_be_replaced(bound: socket.socket) -> None:
    first = Worker(bound)
    assert await first.outcome() == "started"
    second = Worker(bound)
    assert await second.outcome() == "refused"
    first.end()
    third = Worker(bound)
    assert await third.outcome() == "started"
    for worker in (second, third):
        worker.end()


async def test_a_child_of_a_worker_does_not_hold_its_lock(bound: socket.socket) -> None:
    context = multiprocessing.get_context("fork")
    async with Hub():
        # It inherits all descriptors of this process.
        child = context.Process(target=signal.pause)
        child.start()
    try:
        worker = Worker(bound)
        assert await worker.outcome() == "started"
        worker.end()
    finally:
        child.kill()
        child.join()


async def test_hubs_of_one_process_share_its_lock(bound: socket.socket) -> None:
    one, two = Hub(), Hub()
    async with two:
        async with one:
            pass
        worker = Worker(bound)
        assert await worker.outcome() == "refused"
        worker.end()
    assert not lock_file(bound).exists()
    worker = Worker(bound)
    assert await worker.outcome() == "started"
    worker.end()


async def test_two_hubs_that_wait_for_another_worker_start_when_it_ends(
    bound: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "NEW", 0)
    worker = Worker(bound)
    assert await worker.outcome() == "started"
    one, two = Hub(), Hub()
    entering = [asyncio.create_task(hub.__aenter__()) for hub in (one, two)]
    await asyncio.sleep(0)
    # A third hub stops waiting, which does not affect the other two.
    third = asyncio.create_task(Hub().__aenter__())
    await asyncio.sleep(0)
    third.cancel()
    await asyncio.wait([third])
    worker.end()
    # As a worker does that ends by itself.
    lock_file(bound).unlink()
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*entering)
    await one.__aexit__(None, None, None)
    worker = Worker(bound)
    assert await worker.outcome() == "refused"
    worker.end()
    await two.__aexit__(None, None, None)
    assert not lock_file(bound).exists()


async def test_a_hub_does_not_wait_forever_for_another_worker(
    bound: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "NEW", 0)
    monkeypatch.setattr(workers, "PATIENCE", 0.01)
    worker = Worker(bound)
    assert await worker.outcome() == "started"
    with pytest.raises(InvalidURL, match=REFUSED):
        async with Hub():
            pass
    assert "waiting up to 0.01 s for it to stop." in caplog.text
    # A hub that is told that it need not reach other workers starts.
    async with Hub("memory://?alone=yes"):
        pass
    worker.end()


def test_addresses_of_sockets_that_are_bound_and_not_connected(bound: socket.socket, tmp_path: Path) -> None:
    before = set(workers.bound_addresses())
    name = f"127.0.0.1:{bound.getsockname()[1]}"
    assert name in before
    with (
        socket.socket(),
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        socket.create_server(("", 0)) as listening,
    ):
        datagrams.bind(("127.0.0.1", 0))
        with socket.create_connection(listening.getsockname()):
            port = listening.getsockname()[1]
            assert set(workers.bound_addresses()) - before == {f"0.0.0.0:{port}"}
    with socket.socket(socket.AF_UNIX) as named:
        named.bind(str(tmp_path / "socket"))
        (found,) = set(workers.bound_addresses()) - before
        assert str(tmp_path / "socket") in found


async def test_a_hub_starts_with_a_warning_where_lock_files_cannot_be_created(
    bound: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "lock_file", lambda address: tmp_path / "not" / "there.lock")
    async with Hub():
        pass
    assert "Cannot detect other workers of this app" in caplog.text
    # Another user's file is not followed.
    (tmp_path / "link.lock").symlink_to(tmp_path / "target")
    monkeypatch.setattr(workers, "lock_file", lambda address: tmp_path / "link.lock")
    async with Hub():
        pass
    assert not (tmp_path / "target").exists()
