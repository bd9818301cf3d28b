"""Waiting by a clock, which may be a fake one."""

from __future__ import annotations

import asyncio

from hubbub.node.clock import sleep, wait
from tests.clients import DEADLINE
from tests.clock import FakeClock


async def test_a_wait_ends_with_its_event_or_with_its_time() -> None:
    clock = FakeClock()
    for ends in ("event", "time"):
        event = asyncio.Event()
        waiting = asyncio.create_task(wait(clock, event, 5))
        await asyncio.sleep(0)
        await clock.pass_time(4, 1)
        assert not waiting.done()
        if ends == "event":
            event.set()
        else:
            clock.advance(1)
        await asyncio.wait_for(waiting, DEADLINE)


async def test_a_sleep_lasts_as_long_as_it_says() -> None:
    clock = FakeClock()
    sleeping = asyncio.create_task(sleep(clock, 5))
    await asyncio.sleep(0)
    await clock.pass_time(4, 1)
    assert not sleeping.done()
    await clock.pass_time(1, 1)
    assert sleeping.done()


async def test_a_wait_of_0_seconds_leaves_other_tasks_a_turn() -> None:
    clock, turns = FakeClock(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(10):
        await wait(clock, asyncio.Event(), 0)
    task.cancel()
    assert turns >= 9


async def test_an_event_loop_is_a_clock() -> None:
    await asyncio.wait_for(sleep(asyncio.get_running_loop(), 0.001), DEADLINE)
