"""The subscriptions of a node: joining, resuming, repairs and leaving, on an engine that can fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from hubbub import EngineUnavailable, History, Position, Unrecoverable
from hubbub.core.publication import START
from hubbub.engines.base import Top
from hubbub.node.control import CONTROL
from hubbub.node.node import TICK, Node
from hubbub.node.repairs import CHECK_INTERVAL, GRACE
from hubbub.node.subscriptions import LINGER
from tests.clients import DEADLINE
from tests.clock import FakeClock
from tests.node.flaky_engine import FlakyEngine, running, say
from tests.subscriber import Subscriber

HISTORY = History(size=50, ttl=60)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine(clock: FakeClock) -> FlakyEngine:
    return FlakyEngine(clock)


@pytest.fixture
async def node(engine: FlakyEngine, clock: FakeClock) -> AsyncIterator[Node]:
    async with running(engine, HISTORY, clock) as node:
        yield node


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# Joining and resuming


async def test_a_subscriber_that_resumes_gets_missed_publications_and_then_new_ones(node: Node) -> None:
    positions = await say(node, "1", "2", "3")
    subscriber = Subscriber()
    assert await node.join("chat", subscriber, since=positions[0]) == positions[-1]
    await say(node, "4")
    await subscriber.hears("2", "3", "4")


@pytest.mark.parametrize(
    ("history", "received"), [(0, ["4"]), (2, ["2", "3", "4"]), (99, ["1", "2", "3", "4"])]
)
async def test_a_subscriber_may_ask_for_the_last_publications(
    node: Node, history: int, received: list[str]
) -> None:
    positions = await say(node, "1", "2", "3")
    subscriber = Subscriber()
    assert await node.join("chat", subscriber, history=history) == positions[-1]
    await say(node, "4")
    await subscriber.hears(*received)


async def test_start_is_before_everything(node: Node) -> None:
    await say(node, "1", "2")
    subscriber = Subscriber()
    await node.join("chat", subscriber, since=START)
    await subscriber.hears("1", "2")


async def test_a_position_that_the_history_does_not_reach_is_unrecoverable(node: Node) -> None:
    first, *_, last = await say(node, *map(str, range(60)))
    for since in (first, Position(3, "another"), Position(99, last.epoch), START):
        with pytest.raises(Unrecoverable) as caught:
            await node.join("chat", Subscriber(), since=since)
        assert (caught.value.offset, caught.value.epoch) == last


@pytest.mark.parametrize("options", [{"ahead": True}, {"history": 2}])
async def test_joining_a_node_that_is_behind_breaks_no_subscription(
    node: Node, engine: FlakyEngine, options: dict[str, Any]
) -> None:
    there, joins = Subscriber(), Subscriber("bob")
    await node.join("chat", there)
    await say(node, "1")
    await there.hears("1")
    # For a moment this node misses publications that other nodes have received.
    engine.loses = True
    positions = await say(node, "2", "3", "4", "5", "6")
    engine.loses = False
    if "ahead" in options:
        await node.join("chat", joins, since=positions[-2])
    else:
        await node.join("chat", joins, history=options["history"])
    await say(node, "7")
    await there.hears("1", "2", "3", "4", "5", "6", "7")
    assert joins.received[-2:] == ["6", "7"]
    assert there.breaks == joins.breaks == []


async def test_5000_subscribers_that_resume_at_once_cost_the_engine_one_read(
    node: Node, engine: FlakyEngine
) -> None:
    positions = await say(node, *map(str, range(20)))
    subscribers = [Subscriber(str(number)) for number in range(5000)]
    await asyncio.gather(*(node.join("chat", subscriber, since=positions[9]) for subscriber in subscribers))
    assert {tuple(subscriber.received) for subscriber in subscribers} == {tuple(map(str, range(10, 20)))}
    assert engine.reads == 1
    assert engine.subscribed == [CONTROL, "chat"]


async def test_a_subscriber_that_is_ahead_of_this_node_waits_for_it(node: Node, engine: FlakyEngine) -> None:
    await node.join("chat", Subscriber("here"))
    engine.loses = True
    positions = await say(node, "1", "2")
    subscriber = Subscriber()
    assert await node.join("chat", subscriber, since=positions[-1]) == positions[-1]
    engine.loses = False
    await say(node, "3")
    await subscriber.hears("3")


async def test_subscribers_join_and_resume_during_publishing(engine: FlakyEngine, clock: FakeClock) -> None:
    # All publications are kept, so that the last subscriber can resume too.
    async with running(engine, History(size=1000), clock) as node:
        start = (await say(node, "first"))[0]
        subscribers: list[Subscriber] = []

        async def publish(name: str) -> None:
            for number in range(100):
                await say(node, f"{name}{number}")
                await asyncio.sleep(0)

        async def join() -> None:
            for _ in range(20):
                subscriber = Subscriber(str(len(subscribers)))
                subscribers.append(subscriber)
                await node.join("chat", subscriber, since=start)
                await asyncio.sleep(0.001)

        await asyncio.gather(publish("a"), publish("b"), join(), join())
        await until(lambda: all(len(subscriber.received) == 200 for subscriber in subscribers))
        assert len({tuple(subscriber.received) for subscriber in subscribers}) == 1


async def test_an_outage_refuses_subscribers_and_takes_them_when_it_is_over(
    node: Node, engine: FlakyEngine
) -> None:
    engine.is_disconnected = True
    results = await asyncio.gather(
        *(node.join("chat", Subscriber(str(number))) for number in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [EngineUnavailable] * 3
    engine.is_disconnected = False
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    await say(node, "1")
    await subscriber.hears("1")


async def test_a_cancelled_join_does_not_stop_the_others(node: Node) -> None:
    one, other = Subscriber("one"), Subscriber("other")
    joining = asyncio.create_task(node.join("chat", one))
    staying = asyncio.create_task(node.join("chat", other))
    await asyncio.sleep(0)
    joining.cancel()
    await staying
    await say(node, "1")
    await other.hears("1")
    assert one.received == []


async def test_joining_in_the_turn_in_which_the_engine_answers_does_not_stop_the_loop(node: Node) -> None:
    """The subscription that other subscribers wait for is done, and has not been removed yet."""
    subscribers = [Subscriber(str(number)) for number in range(50)]

    async def join(subscriber: Subscriber, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await node.join("chat", subscriber)

    await asyncio.gather(*(join(subscriber, turns) for turns, subscriber in enumerate(subscribers)))
    await say(node, "1")
    assert {tuple(subscriber.received) for subscriber in subscribers} <= {("1",), ()}
    for subscriber in subscribers:
        await subscriber.hears("1")


# Repairs


async def test_lost_publications_are_read_from_the_history(node: Node, engine: FlakyEngine) -> None:
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    await say(node, "1")
    engine.loses = True
    await say(node, "2", "3")
    engine.loses = False
    await say(node, "4", "5")
    await subscriber.hears("1", "2", "3", "4", "5")
    assert subscriber.breaks == []


async def test_a_repair_continues_until_the_outage_is_over(node: Node, engine: FlakyEngine) -> None:
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    engine.loses = True
    await say(node, "1")
    engine.loses = False
    engine.is_disconnected = True
    await say(node, "2", "3")
    await until(lambda: engine.reads > 1)
    assert subscriber.received == []
    engine.is_disconnected = False
    await say(node, "4")
    await subscriber.hears("1", "2", "3", "4")


async def test_the_last_publications_are_read_after_a_reconnect(node: Node, engine: FlakyEngine) -> None:
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    engine.loses = True
    await say(node, "1", "2")
    node.on_reconnect()
    await subscriber.hears("1", "2")


async def test_a_lost_last_publication_is_noticed_by_the_regular_check(
    node: Node, engine: FlakyEngine, clock: FakeClock
) -> None:
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    engine.loses = True
    await say(node, "1")
    await clock.pass_time(CHECK_INTERVAL + GRACE + 3 * TICK, TICK)
    await subscriber.hears("1")


async def test_a_gap_that_cannot_be_repaired_breaks_the_subscription(node: Node, engine: FlakyEngine) -> None:
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    await say(node, "1")
    await engine.remove_history("chat")
    last = (await say(node, "2"))[0]
    await until(lambda: bool(subscriber.breaks))
    assert subscriber.breaks == [last]
    assert subscriber.received == ["1"]


@pytest.mark.parametrize("published", [0, 1, 3, 5])
async def test_a_client_cannot_resume_after_the_engine_was_set_back(
    node: Node, engine: FlakyEngine, published: int
) -> None:
    """Even if its offset has been given out a second time when it reconnects, and more."""
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    await say(node, "1", "2", "3", "4", "5")
    before = node.position("chat")
    engine.set_back("chat", 3)
    engine.loses = True
    await say(node, *(f"again {number}" for number in range(published)))
    engine.loses = False
    node.on_reconnect()
    await until(lambda: bool(subscriber.breaks))
    with pytest.raises(Unrecoverable):
        await node.join("chat", Subscriber("reconnects"), since=before)
    # No client can take a new position for an old one.
    assert node.position("chat").epoch != before.epoch
    late = Subscriber("late")
    await node.join("chat", late)
    await say(node, "new")
    await late.hears("new")
    assert len(subscriber.breaks) == 1


async def test_a_new_epoch_is_not_begun_twice(node: Node, engine: FlakyEngine) -> None:
    """Two nodes may notice at the same time that the engine was set back."""
    await node.join("chat", Subscriber())
    before = node.position("chat")
    await engine.renew_epoch("chat", before.epoch)
    after = (await engine.history("chat")).position
    assert after.epoch != before.epoch
    await engine.renew_epoch("chat", before.epoch)
    assert (await engine.history("chat")).position == after


# Leaving


async def test_a_channel_without_subscribers_is_left_after_a_while(
    node: Node, engine: FlakyEngine, clock: FakeClock
) -> None:
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    node.leave("chat", subscriber)
    await node.join("chat", subscriber)
    await clock.pass_time(3 * LINGER, TICK)
    assert engine.unsubscribed == []
    node.leave("chat", subscriber)
    await clock.pass_time(LINGER - TICK, TICK)
    assert engine.unsubscribed == []
    await clock.pass_time(2 * TICK, TICK)
    await until(lambda: engine.unsubscribed == ["chat"])
    assert node.stats()["channels"] == 0
    # And it can be joined again.
    await say(node, "1")
    await node.join("chat", subscriber, since=START)
    await subscriber.hears("1")
    assert engine.subscribed == [CONTROL, "chat", "chat"]


async def test_a_channel_whose_only_subscriber_left_during_the_subscription_is_left_in_the_end(
    node: Node, engine: FlakyEngine, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe, may_subscribe = engine.subscribe, asyncio.Event()

    async def slow_subscribe(channel: str, history: History | None = None) -> Top:
        await may_subscribe.wait()
        return await subscribe(channel, history)

    monkeypatch.setattr(engine, "subscribe", slow_subscribe)
    joining = asyncio.create_task(node.join("chat", Subscriber()))
    await asyncio.sleep(0)
    joining.cancel()
    await asyncio.wait([joining])
    # Until the node has checked several times whether it may leave.
    await clock.pass_time(3 * LINGER, TICK)
    may_subscribe.set()
    await until(lambda: engine.subscribed[-1] == "chat")
    assert engine.unsubscribed == []
    await clock.pass_time(2 * LINGER, TICK)
    await until(lambda: engine.unsubscribed == ["chat"])
