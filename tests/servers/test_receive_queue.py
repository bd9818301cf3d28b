"""The receive queue: events in order, receivers in turn, and no event lost with a cancelled receiver."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from hubbub.servers.receive_queue import ReceiveQueue


@pytest.fixture
async def queue() -> ReceiveQueue:
    return ReceiveQueue(asyncio.get_running_loop())


async def test_events_are_received_in_order(queue: ReceiveQueue) -> None:
    for number in range(3):
        queue.put_nowait(number)
    assert len(queue) == 3
    assert [await queue.get() for _ in range(3)] == [0, 1, 2]
    assert queue.empty()
    assert len(queue) == 0


async def test_a_receiver_waits_for_the_next_event(queue: ReceiveQueue) -> None:
    for number in range(3):
        receiver = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        assert not receiver.done()
        queue.put_nowait(number)
        queue.put_nowait("more")
        assert await receiver == number
        assert await queue.get() == "more"


@pytest.mark.parametrize("event_comes", ["before", "after"])
async def test_a_cancelled_receiver_takes_no_event(queue: ReceiveQueue, event_comes: str) -> None:
    receiver = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    if event_comes == "before":
        queue.put_nowait("kept")
    receiver.cancel()
    if event_comes == "after":
        queue.put_nowait("kept")
    with pytest.raises(asyncio.CancelledError):
        await receiver
    assert await queue.get() == "kept"


@pytest.mark.parametrize("events_first", [True, False])
async def test_several_receivers_take_turns(queue: ReceiveQueue, events_first: bool) -> None:
    receivers = [asyncio.create_task(queue.get()) for _ in range(4)]
    if not events_first:
        await asyncio.sleep(0)
    for number in range(4):
        queue.put_nowait(number)
    async with asyncio.timeout(10):
        assert [await receiver for receiver in receivers] == [0, 1, 2, 3]
    assert queue.empty()


async def test_each_event_wakes_one_receiver(queue: ReceiveQueue) -> None:
    receivers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for number, receiver in enumerate(receivers):
        queue.put_nowait(number)
        async with asyncio.timeout(10):
            assert await receiver == number
        assert not any(each.done() for each in receivers[number + 1 :])


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("event_comes", ["before", "after"])
async def test_the_next_receiver_takes_the_event_of_a_cancelled_one(
    queue: ReceiveQueue, which: int, event_comes: str
) -> None:
    receivers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    if event_comes == "before":
        queue.put_nowait("kept")
    receivers[which].cancel()
    if event_comes == "after":
        queue.put_nowait("kept")
    left = [receiver for receiver in receivers if receiver is not receivers[which]]
    async with asyncio.timeout(10):
        assert await left[0] == "kept"
        queue.put_nowait("more")
        assert await left[1] == "more"


@pytest.mark.parametrize("seed", range(20))
async def test_it_behaves_as_a_queue_of_asyncio(queue: ReceiveQueue, seed: int) -> None:
    """At random, receivers start and are cancelled and events arrive; both queues give the same results."""
    expected: asyncio.Queue[int] = asyncio.Queue()
    chance = random.Random(seed)
    receivers: list[tuple[asyncio.Task[Any], asyncio.Task[int]]] = []
    for number in range(200):
        match chance.randrange(5):
            case 0 | 1:
                receivers.append((asyncio.create_task(queue.get()), asyncio.create_task(expected.get())))
            case 2 | 3:
                queue.put_nowait(number)
                expected.put_nowait(number)
            case 4 if receivers:
                for receiver in chance.choice(receivers):
                    receiver.cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    for receiver in receivers[-1] if receivers else ():
        receiver.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for ours, theirs in receivers:
        assert ours.done() == theirs.done()
        if ours.done():
            assert ours.cancelled() == theirs.cancelled()
            assert ours.cancelled() or ours.result() == theirs.result()
        ours.cancel()
        theirs.cancel()
    assert len(queue) == expected.qsize()
