"""Server processes, which tests connect to and kill."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import httpx2

from tests.clients import DEADLINE, http_client

ROOT = Path(__file__).parent.parent

#: The command line of a server, in which {target} and {port} are filled in.
Command: TypeAlias = Sequence[str]

SERVERS: dict[str, Command] = {
    "hubbub run": ("hubbub", "run", "{target}", "--port", "{port}"),
    "uvicorn --ws": (
        *("uvicorn", "{target}", "--port", "{port}"),
        *("--ws", "hubbub.servers.uvicorn:HubProtocol", "--loop", "asyncio", "--http", "h11"),
    ),
    "uvicorn": ("uvicorn", "{target}", "--port", "{port}"),
    # uvicorn's own protocol, which Hubbub does not replace if the user asks for it.
    "uvicorn queued": ("uvicorn", "{target}", "--port", "{port}", "--ws", "websockets-sansio"),
    "hypercorn": ("hypercorn", "{target}", "--bind", "127.0.0.1:{port}"),
    "granian": ("granian", "{target}", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}"),
}


def free_port() -> int:
    """Return a port for a server that is about to start.

    It is below 32,768, where Linux begins to assign ports to connecting clients: a client could get such a
    port before the server listens.
    """
    while True:
        # The nodes of a Redis cluster also listen 10,000 further up.
        port = random.SystemRandom().randrange(10_000, 22_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def is_running(pid: int) -> bool:
    """Whether the process is running; a zombie is not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text()
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        # It has just ended, or this system has no /proc.
        return not Path("/proc/self").exists()
    return stat.rpartition(")")[2].split()[0] != "Z"


class Server:
    """A server process that answers on ``port``; its output is collected in ``log``."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def get_json(self, path: str) -> dict[str, Any]:
        async with http_client() as client:
            answer: dict[str, Any] = (await client.get(self.http + path)).json()
            return answer

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def stop(self, sig: signal.Signals = signal.SIGTERM, timeout: float = DEADLINE) -> int:
        """End the server and all its child processes, and return its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(sig)
        try:
            async with asyncio.timeout(timeout):
                return await self.process.wait()
        finally:
            # The process leads a group of its own, to which its workers belong.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@asynccontextmanager
async def serve(
    target: str,
    log: Path,
    *,
    command: Command | str = "hubbub run",
    args: Sequence[str] = (),
    port: int | None = None,
    cwd: Path = ROOT / "examples",
    probe: str | None = "/",
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """Run a server during the block, which begins when the server answers requests.

    :param target: the app, as ``module:name``.
    :param log: the file for the server's output.
    :param command: one of ``SERVERS``, or a command line.
    :param args: more words of the command line.
    :param port: the port to listen on; a free one by default.
    :param cwd: the directory in which the server is started, and from which ``target`` is imported.
    :param probe: the path of the requests that test whether it answers; ``None`` begins the block at once.
    :param env: more environment variables.
    """
    port = port or free_port()
    words = SERVERS[command] if isinstance(command, str) else command
    program, *rest = [word.format(target=target, port=port) for word in words]
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name(program)),
            *rest,
            *args,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(cwd), "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        if probe is not None:
            await _answers(server, probe)
        yield server
    finally:
        await server.stop()


async def _answers(server: Server, probe: str) -> None:
    async with asyncio.timeout(DEADLINE), http_client() as client:
        while True:
            if server.process.returncode is not None:
                raise RuntimeError(f"The server ended with {server.process.returncode}:\n{server.log}")
            try:
                await client.get(server.http + probe)
                return
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
