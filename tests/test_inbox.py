"""The inbox of a connection: one reader, in order, nothing lost when a wait is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from hubbub.servers.inbox import Inbox


@pytest.fixture
async def inbox() -> Inbox:
    return Inbox(asyncio.get_running_loop())


async def test_events_come_out_in_the_order_in_which_they_went_in(inbox: Inbox) -> None:
    for number in range(3):
        inbox.put_nowait(number)
    assert len(inbox) == 3
    assert [await inbox.get() for _ in range(3)] == [0, 1, 2]
    assert inbox.empty()
    assert len(inbox) == 0


async def test_a_reader_waits_for_the_next_event(inbox: Inbox) -> None:
    for number in range(3):
        reader = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        assert not reader.done()
        inbox.put_nowait(number)
        inbox.put_nowait("more")
        assert await reader == number
        assert await inbox.get() == "more"


@pytest.mark.parametrize("comes", ["before", "after"])
async def test_a_cancelled_wait_takes_nothing(inbox: Inbox, comes: str) -> None:
    reader = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    if comes == "before":
        inbox.put_nowait("kept")
    reader.cancel()
    if comes == "after":
        inbox.put_nowait("kept")
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await inbox.get() == "kept"
