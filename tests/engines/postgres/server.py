"""A real PostgreSQL server for tests.

It is our own, which tests may stop and start, or the one at ``HUBBUB_TEST_POSTGRES_URL``. Our own comes from
a wheel; ``HUBBUB_TEST_POSTGRES_PROGRAMS`` names another folder with the programs, such as
``/usr/lib/postgresql/15/bin``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import postgres as wheel
from tests.clients import DEADLINE
from tests.uvicorn_process import free_port


def programs() -> Path:
    if folder := os.environ.get("HUBBUB_TEST_POSTGRES_PROGRAMS"):
        return Path(folder)
    return wheel.programs()


class PostgresServer:
    """A server in a folder of its own. PostgreSQL refuses to run as root: then it runs as another user."""

    def __init__(self, folder: Path) -> None:
        self._programs = programs()
        self._folder = folder
        self._as = wheel.as_user()
        if self._as:
            shutil.chown(folder, self._as["user"], self._as["group"])
        self.port = free_port()
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self._folder} -c fsync=off -c max_connections=300"
        self._run("pg_ctl", "start", "-w", "-l", str(self._folder / "log"), "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server.

        :param mode: ``"immediate"`` is a crash, ``"fast"`` is not.
        """
        self._run("pg_ctl", "stop", "-w", "-m", mode)

    def _run(self, program: str, *arguments: str) -> None:
        # Not with pipes: the server would inherit them, and keep them open.
        with tempfile.TemporaryFile() as output:
            command = [str(self._programs / program), "-D", str(self._folder / "data"), *arguments]
            done = subprocess.run(
                command,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                timeout=DEADLINE,
                check=False,
                **self._as,
            )
            output.seek(0)
            assert done.returncode == 0, output.read().decode(errors="replace")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    # Not in pytest's folders, which only their owner may enter.
    with tempfile.TemporaryDirectory(prefix="hubbub-postgres-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server that tests may stop and start again."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database whose user has all rights."""
    if url := os.environ.get("HUBBUB_TEST_POSTGRES_URL"):
        return url
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url
