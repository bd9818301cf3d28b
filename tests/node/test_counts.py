"""The counts of a node: publications, deliveries, recoveries and repairs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from hubbub import History, Position, Publication, Unrecoverable
from hubbub.core.publication import START
from hubbub.node.control import Forget
from hubbub.node.node import Node
from hubbub.protocols.envelope import ENVELOPE
from tests.clients import DEADLINE, eventually
from tests.clock import FakeClock
from tests.node.flaky_engine import FlakyEngine, running, say
from tests.subscriber import Subscriber

#: A position that no channel has had.
OTHER_EPOCH = Position(1, "another")


@pytest.fixture
def engine() -> FlakyEngine:
    return FlakyEngine(FakeClock())


@pytest.fixture
async def node(engine: FlakyEngine) -> AsyncIterator[Node]:
    """A node on which only the channel ``chat`` has a history."""
    async with running(engine, History(size=5), FakeClock()) as node:
        yield node


def counts(node: Node, *names: str) -> tuple[int, ...]:
    stats = node.stats()
    return tuple(stats[name] for name in names)


# Publications


@pytest.mark.parametrize("channel", ["chat", "news"])
async def test_a_publication_is_counted_where_it_passes(node: Node, channel: str) -> None:
    for name in ("ann", "bob", "eve"):
        await node.join(channel, Subscriber(name))
    await node.join(channel, Subscriber("dan"), form=ENVELOPE)
    await say(node, "1", "2", channel=channel)
    await say(node, "3", channel="without subscribers")
    assert counts(node, "published", "received") == (3, 2)
    await eventually(lambda: counts(node, "delivered") == (8,))


async def test_an_excluded_subscriber_is_no_delivery(node: Node) -> None:
    subscribers = [Subscriber(name) for name in ("ann", "bob", "eve")]
    for each in subscribers:
        await node.join("chat", each)
    await node.publish(Publication("chat", b"1", "text", "ann", "id-1"))
    await node.publish(Publication("chat", b"2", "text", None, "id-2"))
    await node.publish(Publication("chat", b"3", "text", "of another node", "id-3"))
    await subscribers[2].hears("1", "2", "3")
    assert sum(len(each.received) for each in subscribers) == 8
    assert counts(node, "delivered") == (8,)


async def test_a_publication_that_the_engine_refuses_is_not_published(
    node: Node, engine: FlakyEngine
) -> None:
    with pytest.raises(TypeError):
        await node.publish(Publication("chat", b"1", "text", None, "id-1"), using=object())
    assert counts(node, "published", "received") == (0, 0)


async def test_channels_of_nodes_are_not_counted(node: Node) -> None:
    await node.command(Forget("chat"))
    await asyncio.sleep(0)
    assert counts(node, "published", "received", "delivered", "repairs", "failed_repairs") == (0, 0, 0, 0, 0)


async def test_counts_of_a_channel_outlast_it(node: Node) -> None:
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    await say(node, "1")
    await subscriber.hears("1")
    node.leave("chat", subscriber)
    assert counts(node, "published", "received", "delivered") == (1, 1, 1)


async def test_publishing_without_an_end_gives_others_a_turn(node: Node) -> None:
    turns: list[int] = []

    async def publish() -> None:
        for _ in range(3000):
            await node.publish(Publication("without subscribers", b"1", "text"))

    publishing = asyncio.create_task(publish())
    async with asyncio.timeout(DEADLINE):
        while not publishing.done():
            turns.append(counts(node, "published")[0])
            await asyncio.sleep(0)
    # A publisher is suspended after 256 publications.
    assert len(turns) > 10
    assert max(later - earlier for earlier, later in pairwise(turns)) <= 256


# Recoveries


async def test_recoveries(node: Node) -> None:
    await node.join("chat", Subscriber("present"))
    positions = await say(node, *map(str, range(8)))
    missed = Subscriber("missed some")
    await node.join("chat", missed, since=positions[5])
    assert missed.received == ["6", "7"]
    await node.join("chat", Subscriber("missed none"), since=positions[-1])
    assert counts(node, "recoveries", "failed_recoveries") == (2, 0)
    # The history has five.
    with pytest.raises(Unrecoverable):
        await node.join("chat", Subscriber("plain"), since=positions[0])
    assert counts(node, "recoveries", "failed_recoveries") == (2, 1)
    for since in (positions[0], OTHER_EPOCH):
        await node.join("chat", Subscriber(f"envelope {since.epoch}"), since=since, form=ENVELOPE)
    assert counts(node, "recoveries", "failed_recoveries") == (2, 3)


async def test_a_client_that_gives_no_position_recovers_nothing(node: Node) -> None:
    await say(node, *map(str, range(8)))
    last = Subscriber("with history")
    await node.join("chat", last, history=10)
    await node.join("chat", Subscriber("without"))
    await node.join("chat", Subscriber("envelope"), form=ENVELOPE)
    assert len(last.received) == 5
    assert counts(node, "recoveries", "failed_recoveries") == (0, 0)


async def test_a_channel_without_history_fails_to_recover(node: Node) -> None:
    await node.join("news", Subscriber(), since=OTHER_EPOCH, form=ENVELOPE)
    assert counts(node, "recoveries", "failed_recoveries") == (0, 1)


async def test_a_client_that_leaves_has_neither_recovered_nor_failed(node: Node) -> None:
    await say(node, "1")
    await node.join("chat", Subscriber(), since=START, is_wanted=lambda: False)

    class Gone(Subscriber):
        async def ready(self) -> int:
            return 0

    await node.join("chat", Gone(), since=START)
    assert counts(node, "recoveries", "failed_recoveries") == (0, 0)


async def test_a_run_that_breaks_during_the_replay_has_failed(node: Node, engine: FlakyEngine) -> None:
    class Slow(Subscriber):
        """Is ready for one byte at a time, and lets the history go meanwhile."""

        async def ready(self) -> int:
            if self.received:
                await engine.remove_history("chat")
                await say(node, "new")
                await eventually(lambda: bool(there.breaks))
            return 1

    there, slow = Subscriber("there"), Slow()
    await node.join("chat", there)
    positions = await say(node, "1", "2", "3")
    await node.join("chat", slow, since=Position(0, positions[0].epoch))
    assert slow.breaks
    assert counts(node, "recoveries", "failed_recoveries") == (0, 1)


# Repairs


async def test_a_repair_that_finds_all(node: Node, engine: FlakyEngine) -> None:
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    engine.loses = True
    await say(node, "1", "2")
    engine.loses = False
    await say(node, "3")
    await subscriber.hears("1", "2", "3")
    assert counts(node, "repairs", "failed_repairs", "received") == (1, 0, 1)


async def test_a_repair_that_comes_too_late(node: Node, engine: FlakyEngine) -> None:
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    engine.loses = True
    await say(node, *map(str, range(10)))
    engine.loses = False
    await say(node, "last")
    await eventually(lambda: bool(subscriber.breaks))
    assert counts(node, "repairs", "failed_repairs") == (0, 1)


# Threads


class Connection:
    """A connection for which messages were dropped."""

    user: str | None = None
    backlog = 1

    def __init__(self, number: int) -> None:
        self.id = str(number)
        self.dropped = 1

    def end(self, code: int, reason: str) -> None: ...
    def tick(self, now: float) -> None: ...
    async def recheck(self) -> None: ...


async def test_counters_never_fall_for_a_thread_that_reads_them(node: Node) -> None:
    connections = [Connection(number) for number in range(300)]
    for each in connections:
        node.add(each)
    read: list[int] = []
    is_done = threading.Event()

    def read_often() -> None:
        while not is_done.is_set():
            read.append(node.stats()["dropped"])

    reading = threading.Thread(target=read_often)
    reading.start()
    try:
        await eventually(lambda: bool(read))
        for number, each in enumerate(connections):
            node.remove(each)
            # Channels come and go meanwhile.
            await node.join(f"channel {number}", Subscriber())
    finally:
        is_done.set()
        reading.join(DEADLINE)
    assert set(read) == {300}
    assert counts(node, "dropped", "connections", "backlog") == (300, 0, 0)
