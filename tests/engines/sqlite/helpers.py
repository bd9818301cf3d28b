"""Engines and processes on a file, and helpers that read, lock or remove it."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from hubbub.engines.sqlite import SQLiteEngine
from hubbub.exceptions import EngineUnavailable, HubNotRunning
from hubbub.testing.engine_contract import DEADLINE, Collector, publication


def make(path: Path, namespace: str = "hubbub", clock: Callable[[], float] = time.time) -> SQLiteEngine:
    return SQLiteEngine(f"sqlite:///{path}", namespace, clock)


@asynccontextmanager
async def started(
    path: Path, namespace: str = "hubbub", clock: Callable[[], float] = time.time
) -> AsyncIterator[tuple[SQLiteEngine, Collector]]:
    engine, collector = make(path, namespace, clock), Collector()
    await engine.start(collector)
    try:
        yield engine, collector
    finally:
        await engine.stop()


async def refused(path: Path, message: str) -> None:
    """Check that an engine does not start on ``path``, and says ``message``."""
    engine = make(path)
    with pytest.raises(EngineUnavailable, match=message) as info:
        await engine.start(Collector())
    assert str(path) in str(info.value)
    with pytest.raises(HubNotRunning):
        await engine.publish(publication("chat", "hello"))


@asynccontextmanager
async def python(source: str, *arguments: str, deadline: float = DEADLINE) -> AsyncIterator[Process]:
    """A process that runs ``source``, and has ended when the block does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, *arguments, stdin=PIPE, stdout=PIPE, limit=1_000_000
    )
    try:
        async with asyncio.timeout(deadline):
            yield process
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def read_line(process: Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().rstrip("\n")


def rows(path: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


async def found(path: Path, statement: str, expected: list[Any]) -> None:
    """Wait until ``statement`` finds exactly ``expected``."""
    async with asyncio.timeout(DEADLINE):
        while await asyncio.to_thread(rows, path, statement) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have another program write to the file all the time."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def remove(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()
