"""The command ``hubbub``, as a user calls it."""

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
    """A command that has ended: its exit code and what it printed."""

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
    """A command that runs until it is told to end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._readers: list[threading.Thread] = []
        self._out = self._collect(process.stdout)
        self._err = self._collect(process.stderr)

    def out(self) -> str:
        """The next line that it prints."""
        return self._out.get(timeout=DEADLINE)

    def err(self) -> str:
        """The next line on standard error."""
        return self._err.get(timeout=DEADLINE)

    def end(self, sig: signal.Signals) -> int:
        """Tell it to end. Returns its exit code."""
        self.process.send_signal(sig)
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        """End it, if it has not ended, and read what it has left."""
        self.process.kill()
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
    """The command while it runs."""
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
            # Before the block closes what its readers read.
            command.kill()
