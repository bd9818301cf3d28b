"""A server under test: started on a core of its own, its CPU time and memory read from the kernel."""

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
from benchmarks.peers import Peer

HERE = Path(__file__).parent
START_TIMEOUT = 30.0


class ServerFailed(Exception):
    """A server did not start. The message is what it printed."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    :param pid: of its process.
    :param port: where it listens on 127.0.0.1.
    """

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """CPU time the process has used so far, its own and the kernel's for it."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes of memory the process has now (resident set)."""
        return self._status("VmRSS")

    def peak_memory(self) -> int:
        """Bytes of memory the process has had at most since :meth:`reset_peak_memory`."""
        return self._status("VmHWM")

    def reset_peak_memory(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise ServerFailed(f"The process {self.pid} has ended.")


@contextmanager
def serve(peer: Peer, core: int) -> Iterator[Server]:
    """Start ``peer`` on CPU ``core``, and end it afterwards.

    :raises ServerFailed: it does not listen within 30 s.
    """
    if "{build}" in peer.command[0]:
        build(Path(peer.command[0]).name)
    port = _free_port()
    command = [
        part.replace("{port}", str(port)).replace("{python}", sys.executable).replace("{build}", str(BUILD))
        for part in peer.command
    ]
    with TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=HERE / "peers",
            env=os.environ | {"PORT": str(port)},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise ServerFailed(output.read().strip() or f"{peer.title} does not listen.")
                time.sleep(0.05)
            yield Server(process.pid, port)
        finally:
            # What it would still like to do for its clients is not measured.
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
