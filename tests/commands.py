"""Run the command ``hubbub`` as a user does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import IO, NamedTuple

from tests.clients import DEADLINE

HUBBUB = str(Path(sys.executable).with_name("hubbub"))

ENVIRONMENT = {"COLUMNS": "200", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", "TZ": "UTC"}


class Done(NamedTuple):
    """A command that has ended: its exit code and its output."""

    code: int
    out: str
    err: str


def hubbub(
    *words: str, stdin: bytes = b"", cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Done:
    """Run the command to its end."""
    done = subprocess.run(
        [HUBBUB, *words],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, **(env or {})},
        input=stdin,
        capture_output=True,
        timeout=DEADLINE,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


class Running:
    """A command that is still running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._readers: list[threading.Thread] = []
        self._out = self._collect(process.stdout)
        self._err = self._collect(process.stderr)

    def out(self) -> str:
        """Return the next line of standard output."""
        return self._out.get(timeout=DEADLINE)

    def err(self) -> str:
        """Return the next line of standard error."""
        return self._err.get(timeout=DEADLINE)

    def end(self, sig: signal.Signals) -> int:
        """Send ``sig`` and return the exit code."""
        self.process.send_signal(sig)
        return self.process.wait(DEADLINE)

    def rest_of_err(self) -> list[str]:
        """Return the lines of standard error that were not read yet, once the command has ended."""
        self._join_readers()
        return [self._err.get() for _ in range(self._err.qsize())]

    def kill(self) -> None:
        """Kill the command, if it has not ended, and read the rest of its output."""
        self.process.kill()
        self._join_readers()

    def _join_readers(self) -> None:
        for reader in self._readers:
            reader.join(DEADLINE)

    def _collect(self, stream: IO[str] | None) -> SimpleQueue[str]:
        lines: SimpleQueue[str] = SimpleQueue()
        assert stream is not None

        def collect() -> None:
            for line in stream:
                lines.put(line.rstrip("\n"))

        reader = threading.Thread(target=collect, daemon=True)
        reader.start()
        self._readers.append(reader)
        return lines


@contextmanager
def running(*words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Iterator[Running]:
    """Run the command during the block."""
    with subprocess.Popen(
        [HUBBUB, *words],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        command = Running(process)
        try:
            yield command
        finally:
            # Before Popen closes the streams that the reader threads read.
            command.kill()
