"""A second signal ends ``hubbub run`` at once, even if handlers have not returned."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

from hubbub.cli.server import Server as HubServer
from tests.clients import closed, connect, eventually, receive
from tests.uvicorn_process import Server, serve

#: An app whose handlers end some time after their client has gone.
APP = """
import asyncio
from fastapi import FastAPI, WebSocket

app = FastAPI()

@app.websocket("/{seconds}")
async def stubborn(websocket: WebSocket, seconds: float):
    await websocket.accept()
    await websocket.send_text("ready")
    try:
        await websocket.receive_text()
    finally:
        await asyncio.sleep(seconds)
        print("The handler has ended.", flush=True)
"""

MODES = [(), ("--workers", "2"), ("--reload",)]


@asynccontextmanager
async def stubborn(log: Path, mode: Sequence[str]) -> AsyncIterator[Server]:
    log.with_name("stubborn.py").write_text(APP)
    args = ["--drain-seconds", "60", *mode]
    async with serve("stubborn:app", log, args=args, cwd=log.parent, probe="/openapi.json") as server:
        yield server


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("mode", MODES, ids=" ".join)
async def test_a_second_signal_ends_it_at_once(log: Path, mode: Sequence[str], sig: signal.Signals) -> None:
    async with stubborn(log, mode) as server, connect(f"{server.ws}/3600") as client:
        assert await receive(client) == "ready"
        server.process.send_signal(sig)
        # The drain has begun.
        assert (await closed(client))[0] == 1012
        assert server.process.returncode is None
        # Otherwise the drain would take a minute.
        await server.stop(sig)
        pids = re.findall(r"Started server process \S*?(\d+)", server.log)
        assert pids
        await eventually(lambda: not any(is_alive(int(pid)) for pid in pids))
        assert "The handler has ended." not in server.log


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
async def test_a_signal_to_all_processes_is_one_signal(log: Path, mode: Sequence[str]) -> None:
    async with stubborn(log, mode) as server, connect(f"{server.ws}/1") as client:
        assert await receive(client) == "ready"
        # As systemd does. The children also get one from their parent.
        os.killpg(server.process.pid, signal.SIGTERM)
        assert (await closed(client))[0] == 1012
        await eventually(lambda: "The handler has ended." in server.log)
        await server.process.wait()


def test_a_signal_that_comes_twice_before_it_is_handled_is_one() -> None:
    server = HubServer(uvicorn.Config("nothing:here"))
    for _ in range(2):
        server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
    assert not server.force_exit
