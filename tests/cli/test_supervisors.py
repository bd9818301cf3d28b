"""Workers that end are replaced, and one that cannot start takes nobody else with it."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.clients import DEADLINE, eventually, http_client
from tests.uvicorn_process import ROOT, Server, serve


class Break:
    """What keeps the app from starting."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self) -> None:
        self.path.touch()

    def end(self) -> None:
        self.path.unlink()


@pytest.fixture
def broken(tmp_path: Path) -> Break:
    return Break(tmp_path / "broken")


def workers(log: Path, broken: Break, probe: str | None = "/pid") -> AbstractAsyncContextManager[Server]:
    return serve(
        "tests.apps.fragile:app",
        log,
        args=["--workers", "2"],
        cwd=ROOT,
        probe=probe,
        env={"HUBBUB_TEST_BROKEN": str(broken.path)},
    )


async def pids(server: Server, count: int) -> set[int]:
    """Wait until so many workers answer."""
    found: set[int] = set()

    async def all_answer() -> bool:
        async with http_client() as client:
            found.add((await client.get(f"{server.http}/pid")).json())
        return len(found) == count

    await eventually(all_answer)
    return found


async def test_a_worker_that_cannot_start_is_tried_again_while_the_others_serve(
    log: Path, broken: Break
) -> None:
    async with workers(log, broken) as server:
        killed, left = await pids(server, 2)
        broken.begin()
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: "Application startup failed" in server.log)
        await eventually(lambda: "To be tried again" in server.log)
        assert await pids(server, 1) == {left}
        broken.end()
        assert left in await pids(server, 2)


async def test_an_app_that_has_never_started_is_given_up(log: Path, broken: Break) -> None:
    broken.begin()
    async with workers(log, broken, probe=None) as server:
        await asyncio.wait_for(server.process.wait(), DEADLINE)
        assert "did not start, nor does any other serve" in server.log
