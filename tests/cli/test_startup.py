"""``hubbub run`` when the engine is unreachable at startup, or when a worker has to be replaced."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import connect, eventually, receive
from tests.engines.redis.server import RedisServer, redis_server
from tests.uvicorn_process import ROOT, free_port, serve

APP = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from hubbub import Hub
@asynccontextmanager
async def lifespan(app):
    {statement}
    yield
hub = Hub({url!r})
app = FastAPI(lifespan=lifespan)
app.include_router(hub.router)
"""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def app(folder: Path, url: str, statement: str = "pass") -> Path:
    (folder / "app.py").write_text(APP.format(url=url, statement=statement))
    return folder


async def ended(folder: Path, log: Path, *args: str) -> tuple[int | None, str]:
    """Wait until ``hubbub run`` ends by itself; returns its exit code and its log."""
    async with serve("app:app", log, args=args, cwd=folder, probe=None) as server:
        await eventually(lambda: server.process.returncode is not None)
        return server.process.returncode, server.log


@pytest.mark.parametrize("args", [(), ("--workers", "2")])
@pytest.mark.parametrize(
    "url", ["redis://app:s3cret@127.0.0.1:{}", "postgresql://app:s3cret@127.0.0.1:{}/db"]
)
async def test_an_unreachable_engine_is_one_line_in_the_log_and_ends_the_server(
    url: str, args: tuple[str, ...], log: Path, tmp_path: Path
) -> None:
    port = free_port()
    code, text = await ended(app(tmp_path, url.format(port)), log, *args)
    assert code == 3
    assert f"127.0.0.1:{port}" in text
    assert f"To find out more, run: hubbub doctor {url.format(port).replace('s3cret', 'PASSWORD')}" in text
    assert "Traceback" not in text
    assert "s3cret" not in text


async def test_startup_does_not_wait_forever_for_a_server_that_does_not_answer(
    server: RedisServer, log: Path, tmp_path: Path
) -> None:
    with server.frozen():
        code, text = await ended(app(tmp_path, server.url), log)
    assert code == 3
    assert "no answer within 5 s" in text


async def test_other_errors_at_startup_keep_their_traceback(log: Path, tmp_path: Path) -> None:
    code, text = await ended(app(tmp_path, "memory://", "1 / 0"), log)
    assert code == 3
    assert "ZeroDivisionError" in text
    assert "app.py" in text


async def test_workers_of_an_app_that_cannot_start_are_not_started_again(log: Path, tmp_path: Path) -> None:
    folder = app(tmp_path, f"sqlite:///{tmp_path / 'hub.db'}", "1 / 0")
    code, text = await ended(folder, log, "--workers", "2")
    assert code == 3
    assert "could not start, and no other one serves; stopping." in text


async def test_a_worker_that_cannot_be_replaced_does_not_affect_the_others(
    server: RedisServer, log: Path
) -> None:
    env = {"HUBBUB_TEST_URL": server.url, "HUBBUB_TEST_NAMESPACE": "start"}
    async with serve(
        "tests.apps.streams:app", log, args=["--workers", "2"], cwd=ROOT, probe="/pid", env=env
    ) as running:
        pids: set[int] = set()

        async def both_serve() -> bool:
            pids.add((await running.get_json("/pid"))["pid"])
            return len(pids) == 2

        await eventually(both_serve)
        async with connect(f"{running.ws}/chat") as client:
            mine = int(str(await receive(client)).partition(":")[2].strip(" }"))
            assert "position" in str(await receive(client))
            server.kill()
            (other,) = pids - {mine}
            os.kill(other, signal.SIGKILL)
            await eventually(lambda: "starting another one in 5 s." in running.log)
            assert running.process.returncode is None
            server.start()
            # The client is still connected and receives messages.
            await eventually(lambda: running.log.count("Application startup complete") == 3)
            await client.send("still here")
            assert await receive(client) == "still here"
        assert await running.stop() == 0
