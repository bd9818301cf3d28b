"""2000 connections end in every way, and leave nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.clients import connect, eventually, receive, reset
from tests.uvicorn_process import ROOT, serve

CYCLES = 2000
AT_ONCE = 40


async def test_two_thousand_connections_leave_no_task_no_feed_and_no_outbox(log: Path) -> None:
    async with serve("tests.apps.endings:app", log, cwd=ROOT, probe="/remains") as server:

        async def cycle(number: int) -> None:
            ending = ("return", "exception", "http-403", "break")[number % 4]
            client = await connect(f"{server.ws}/ends/{ending}")
            assert await receive(client) == "ready"
            if number % 3 == 0:
                reset(client)
            elif number % 3 == 1:
                await client.close()
            else:
                await client.send("go")
                await client.close()

        before = await server.get_json("/remains")
        limit = asyncio.Semaphore(AT_ONCE)

        async def limited(number: int) -> None:
            async with limit:
                await cycle(number)

        await asyncio.gather(*(limited(number) for number in range(CYCLES)))

        different: list[str] = []

        async def as_before() -> bool:
            now = await server.get_json("/remains")
            different[:] = [
                f"{name}: {before[name]} → {now[name]}" for name in now if now[name] != before[name]
            ]
            return not different

        try:
            await eventually(as_before)
        except TimeoutError:
            pytest.fail(f"Expected nothing to remain, but got {different}.")
        assert before["alive"] == {}
