"""Workers that end are replaced; a worker that cannot start does not affect the others."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import cast

import pytest
import uvicorn
from uvicorn.supervisors.multiprocess import SIGNALS, Process

from hubbub.cli import supervisors
from tests.clients import DEADLINE, eventually, http_client
from tests.uvicorn_process import ROOT, Server, serve


class StartupFailure:
    """Makes the app fail at startup from ``begin`` to ``end``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self) -> None:
        self.path.touch()

    def end(self) -> None:
        self.path.unlink()


@pytest.fixture
def failure(tmp_path: Path) -> StartupFailure:
    return StartupFailure(tmp_path / "broken")


def workers(
    log: Path, failure: StartupFailure, probe: str | None = "/pid"
) -> AbstractAsyncContextManager[Server]:
    return serve(
        "tests.apps.fragile:app",
        log,
        args=["--workers", "2"],
        cwd=ROOT,
        probe=probe,
        env={"HUBBUB_TEST_BROKEN": str(failure.path)},
    )


async def pids(server: Server, count: int) -> set[int]:
    """Wait until ``count`` workers have answered, and return their process ids."""
    found: set[int] = set()

    async def all_answer() -> bool:
        async with http_client() as client:
            found.add((await client.get(f"{server.http}/pid")).json())
        return len(found) == count

    await eventually(all_answer)
    return found


async def test_another_worker_is_started_for_one_that_could_not_while_the_others_serve(
    log: Path, failure: StartupFailure
) -> None:
    async with workers(log, failure) as server:
        killed, other = await pids(server, 2)
        failure.begin()
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: "Application startup failed" in server.log)
        await eventually(lambda: "starting another one in" in server.log)
        assert await pids(server, 1) == {other}
        failure.end()
        assert other in await pids(server, 2)


async def test_the_server_ends_if_no_worker_could_ever_start(log: Path, failure: StartupFailure) -> None:
    failure.begin()
    async with workers(log, failure, probe=None) as server:
        await asyncio.wait_for(server.process.wait(), DEADLINE)
        assert "could not start, and no other one serves" in server.log


# Health checks


class FakeWorker:
    """A worker process, as far as the parent sees it."""

    def __init__(self) -> None:
        self.pid = 1
        self.process = self
        self.exitcode: int | None = None
        self.answers = False
        self.is_killed = False

    def is_ready(self, timeout: float) -> bool:
        return self.answers

    def is_alive(self, timeout: float | None = None) -> bool:
        """As ``Process.is_alive``, with a timeout, or as that of ``multiprocessing.Process``, without one."""
        return self.exitcode is None and (timeout is None or self.answers)

    def kill(self) -> None:
        self.is_killed = True
        self.exitcode = -signal.SIGKILL

    def join(self) -> None:
        pass


class Replacement(FakeWorker):
    def start(self) -> None:
        pass


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[supervisors.Workers]:
    """A parent that replaces a worker by a fake one."""
    handlers = {sig: signal.getsignal(sig) for sig in SIGNALS}
    monkeypatch.setattr(supervisors, "Process", lambda config, sockets: Replacement())
    yield supervisors.Workers(uvicorn.Config("app:app"), sockets=[])
    for sig, handler in handlers.items():
        signal.signal(sig, handler)


def give(parent: supervisors.Workers) -> FakeWorker:
    """Give ``parent`` a worker."""
    worker = FakeWorker()
    parent.processes.append(cast(Process, worker))
    return worker


def test_a_worker_that_has_not_answered_yet_is_waited_for(parent: supervisors.Workers) -> None:
    worker = give(parent)
    for _ in range(3):
        parent.keep_subprocess_alive()
    assert not worker.is_killed
    worker.answers = True
    parent.keep_subprocess_alive()
    assert not worker.is_killed
    assert len(parent.processes) == 1


def test_a_worker_that_never_answers_is_replaced_in_the_end(
    parent: supervisors.Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "START_PATIENCE", 0.0)
    worker = give(parent)
    parent.keep_subprocess_alive()
    assert worker.is_killed
    assert isinstance(parent.processes[0], Replacement)


def test_a_worker_that_no_longer_answers_is_replaced_at_once(parent: supervisors.Workers) -> None:
    worker = give(parent)
    worker.answers = True
    parent.keep_subprocess_alive()
    worker.answers = False
    parent.keep_subprocess_alive()
    assert worker.is_killed
    assert isinstance(parent.processes[0], Replacement)


def test_a_worker_that_has_ended_before_it_answered_is_replaced_at_once(parent: supervisors.Workers) -> None:
    worker = give(parent)
    worker.exitcode = -signal.SIGKILL
    parent.keep_subprocess_alive()
    assert isinstance(parent.processes[0], Replacement)
