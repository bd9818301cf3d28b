"""The inbox of a connection: in order, one reader after another, nothing lost when a wait is cancelled."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from hubbub.servers.receive_queue import ReceiveQueue


@pytest.fixture
async def inbox() -> ReceiveQueue:
    return ReceiveQueue(asyncio.get_running_loop())


async def test_events_come_out_in_the_order_in_which_they_went_in(inbox: ReceiveQueue) -> None:
    for number in range(3):
        inbox.put_nowait(number)
    assert len(inbox) == 3
    assert [await inbox.get() for _ in range(3)] == [0, 1, 2]
    assert inbox.empty()
    assert len(inbox) == 0


async def test_a_reader_waits_for_the_next_event(inbox: ReceiveQueue) -> None:
    for number in range(3):
        reader = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        assert not reader.done()
        inbox.put_nowait(number)
        inbox.put_nowait("more")
        assert await reader == number
        assert await inbox.get() == "more"


@pytest.mark.parametrize("comes", ["before", "after"])
async def test_a_cancelled_wait_takes_nothing(inbox: ReceiveQueue, comes: str) -> None:
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


@pytest.mark.parametrize("events_first", [True, False])
async def test_several_readers_take_turns(inbox: ReceiveQueue, events_first: bool) -> None:
    readers = [asyncio.create_task(inbox.get()) for _ in range(4)]
    if not events_first:
        await asyncio.sleep(0)
    for number in range(4):
        inbox.put_nowait(number)
    async with asyncio.timeout(10):
        assert [await reader for reader in readers] == [0, 1, 2, 3]
    assert inbox.empty()


async def test_each_event_wakes_one_reader(inbox: ReceiveQueue) -> None:
    readers = [asyncio.create_task(inbox.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for number, reader in enumerate(readers):
        inbox.put_nowait(number)
        async with asyncio.timeout(10):
            assert await reader == number
        assert not any(each.done() for each in readers[number + 1 :])


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("comes", ["before", "after"])
async def test_what_a_cancelled_reader_does_not_take_the_next_one_takes(
    inbox: ReceiveQueue, which: int, comes: str
) -> None:
    readers = [asyncio.create_task(inbox.get()) for _ in range(3)]
    await asyncio.sleep(0)
    if comes == "before":
        inbox.put_nowait("kept")
    readers[which].cancel()
    if comes == "after":
        inbox.put_nowait("kept")
    left = [reader for reader in readers if reader is not readers[which]]
    async with asyncio.timeout(10):
        assert await left[0] == "kept"
        inbox.put_nowait("more")
        assert await left[1] == "more"


@pytest.mark.parametrize("seed", range(20))
async def test_it_hands_out_what_a_queue_of_asyncio_does(inbox: ReceiveQueue, seed: int) -> None:
    """Readers come and are cancelled, events come, at random: each reader gets the same of both."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    chance = random.Random(seed)
    readers: list[tuple[asyncio.Task[Any], asyncio.Task[int]]] = []
    for number in range(200):
        match chance.randrange(5):
            case 0 | 1:
                readers.append((asyncio.create_task(inbox.get()), asyncio.create_task(queue.get())))
            case 2 | 3:
                inbox.put_nowait(number)
                queue.put_nowait(number)
            case 4 if readers:
                for reader in chance.choice(readers):
                    reader.cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    for reader in readers[-1] if readers else ():
        reader.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for ours, theirs in readers:
        assert ours.done() == theirs.done()
        if ours.done():
            assert ours.cancelled() == theirs.cancelled()
            assert ours.cancelled() or ours.result() == theirs.result()
        ours.cancel()
        theirs.cancel()
    assert len(inbox) == queue.qsize()
