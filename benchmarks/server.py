"""A server on a core of its own. Its CPU time and memory are read from the kernel."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from benchmarks.build import BUILD, build
from benchmarks.peers import HERE, Peer
from benchmarks.process import start

START_TIMEOUT = 30.0


class ServerFailed(Exception):
    """A server did not start, or has ended."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    :param pid: its process.
    :param port: its port on 127.0.0.1.
    """

    pid: int
    port: int

    def memory(self) -> int:
        """Return the bytes of its resident memory.

        :raises ServerFailed: it has ended.
        """
        return self._status("VmRSS")

    def peak_memory(self) -> int:
        """Return the most bytes of resident memory since :meth:`reset_peak_memory`.

        :raises ServerFailed: it has ended.
        """
        return self._status("VmHWM")

    def reset_peak_memory(self) -> None:
        """Begin a new measurement of the peak."""
        # See clear_refs in proc(5).
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise ServerFailed(f"The server has ended (process {self.pid}).")


@contextmanager
def serve(peer: Peer, core: int, store: str = "") -> Iterator[Server]:
    """Run ``peer`` on CPU ``core`` for the length of a block.

    An exception that leaves the block gets the server's output as a note.

    :param store: the URL of the store that it shares with other processes.
    :raises ServerFailed: it does not listen within 30 s.
    """
    if "{build}" in peer.command[0]:
        build(Path(peer.command[0]).name)
    port = free_port()
    command = [
        part.replace("{port}", str(port)).replace("{python}", sys.executable).replace("{build}", str(BUILD))
        for part in peer.command
    ]
    environment = os.environ | peer.settings(store) | {"PORT": str(port)}
    with (
        TemporaryFile("w+") as output,
        start(
            command,
            core,
            cwd=HERE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not listens(port):
                if process.poll() is not None:
                    raise ServerFailed(
                        f"{peer.title} ended before it listened, with exit code {process.returncode}."
                    )
                if time.monotonic() > deadline:
                    raise ServerFailed(f"{peer.title} did not listen within {START_TIMEOUT:g} s.")
                time.sleep(0.05)
            yield Server(process.pid, port)
        except Exception as exc:
            output.seek(0)
            if printed := output.read().strip():
                exc.add_note(printed)
            raise


def free_port() -> int:
    """Return a port of 127.0.0.1 that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Return whether a server listens on ``port`` of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
