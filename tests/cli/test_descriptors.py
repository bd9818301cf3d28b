"""``hubbub run`` raises its limit of file descriptors, and logs it when they are used up."""

from __future__ import annotations

import asyncio
import resource
import socket
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from websockets.exceptions import InvalidMessage

from tests.clients import connect, eventually, receive
from tests.uvicorn_process import ROOT, serve


def command(limit: str, *words: str) -> tuple[str, ...]:
    """``hubbub run``, started with a limit of file descriptors."""
    start = (
        "import os, resource, sys; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {limit}); "
        "os.execv(os.path.join(os.path.dirname(sys.executable), 'hubbub'), ['hubbub', *sys.argv[1:]])"
    )
    # serve() would fill in braces.
    assert "{" not in start
    return ("python", "-c", start, "run", "{target}", "--port", "{port}", *words)


def limit_of(pid: int) -> int:
    """The soft limit of a process."""
    (line,) = [
        line
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        if line.startswith("Max open files")
    ]
    return int(line.split()[3])


async def test_the_soft_limit_is_raised_to_the_hard_one(log: Path) -> None:
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1_048_576)
    async with serve("tests.apps.handshakes:app", log, command=command("(256, hard)"), cwd=ROOT) as server:
        assert limit_of(server.process.pid) == hard


async def test_the_limit_is_raised_in_workers_too(log: Path, tmp_path: Path) -> None:
    env = {"HUBBUB_TEST_URL": f"sqlite:///{tmp_path / 'hub.db'}", "HUBBUB_TEST_NAMESPACE": "limits"}
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1_048_576)
    words = command("(256, hard)", "--workers", "2")
    async with serve("tests.apps.streams:app", log, command=words, cwd=ROOT, probe="/pid", env=env) as server:
        assert limit_of((await server.get_json("/pid"))["pid"]) == hard


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_refused_connections_are_logged_until_silent_ones_are_closed(
    loop: str, log: Path, tmp_path: Path
) -> None:
    env = {}
    if loop == "asyncio":
        # uvicorn chooses asyncio if uvloop cannot be imported.
        (tmp_path / "uvloop.py").write_text("raise ImportError")
        env["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    words = command("(60, 60)")
    async with serve("tests.apps.handshakes:app", log, command=words, cwd=ROOT, env=env) as server:

        async def is_served() -> bool:
            try:
                async with asyncio.timeout(1), connect(f"{server.ws}/ws") as client:
                    return bool(await receive(client))
            except (OSError, EOFError, InvalidMessage):
                return False

        with ExitStack() as silent:
            for _ in range(100):
                silent.enter_context(closing(socket.create_connection(("127.0.0.1", server.port))))
            await eventually(lambda: "this process has used up its 60 file descriptors" in server.log)
            await eventually(is_served, timeout=40)
    assert "Traceback" not in server.log
    assert server.log.count("Refusing new connections") <= 2
