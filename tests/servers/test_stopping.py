"""Streams that end when the server begins to stop."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from hubbub.servers.stopping import Stopping
from tests.clients import DEADLINE


async def test_streams_end_when_the_server_begins_to_stop() -> None:
    stopping, ended = Stopping(), list[str]()
    with stopping.calling(lambda: ended.append("left before")):
        pass
    with stopping.calling(lambda: ended.append("a")), stopping.calling(lambda: ended.append("b")):
        stopping.begin(DEADLINE)
        stopping.begin()
        async with asyncio.timeout(DEADLINE):
            while len(ended) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert sorted(ended) == ["a", "b"]


async def test_a_stream_that_begins_while_the_server_stops_ends_at_once() -> None:
    stopping, ended = Stopping(), list[str]()
    stopping.begin()
    with stopping.calling(lambda: ended.append("late")):
        assert ended == ["late"]


async def test_many_streams_end_one_after_the_other() -> None:
    stopping, ended = Stopping(), list[float]()
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(stopping.calling(lambda: ended.append(loop.time())))
        stopping.begin(0.2)
        async with asyncio.timeout(DEADLINE):
            while len(ended) < 500:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    # Not in one turn of the loop.
    assert len(set(ended)) > 1
