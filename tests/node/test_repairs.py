"""Repairs: feeds are compared with the engine a few at a time, and repaired where they differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from hubbub import History, Position, Publication
from hubbub.core.feed import Feed
from hubbub.core.history import HistoryPage
from hubbub.core.publication import START
from hubbub.engines.base import Top
from hubbub.exceptions import EngineUnavailable
from hubbub.node.repairs import BATCH, CHECK_INTERVAL, GRACE, Repairs
from hubbub.protocols.plain import PLAIN
from hubbub.testing.fake_engine import FakeEngine, FakeServer, set_back
from tests.clients import DEADLINE
from tests.clock import TURNS, FakeClock
from tests.subscriber import Subscriber

HISTORY = History(size=10, ttl=600)


class Engine(FakeEngine):
    """Records requests, and answers comparisons only when the test lets it."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server)
        self.asked: list[list[str]] = []
        self.reads: list[str] = []
        self.subscribed: list[tuple[str, History | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        self.asked.append(list(channels))
        tops = await super().tops(channels)
        await self.gate.wait()
        return tops

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        self.reads.append(channel)
        return await super().history(channel, since, limit, reverse)

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        self.subscribed.append((channel, history))
        return await super().subscribe(channel, history)


class Sink:
    """Delivers publications to feeds, unless they are lost."""

    def __init__(self) -> None:
        self.feeds: dict[str, Feed] = {}
        self.loses = False

    def on_publication(self, publication: Publication) -> None:
        if not self.loses:
            self.feeds[publication.channel].publish(publication)

    def on_disconnect(self, reason: str) -> None: ...
    def on_reconnect(self) -> None: ...


class Node:
    """The part of a node that repairs need: feeds, and an engine."""

    def __init__(self, server: FakeServer, clock: FakeClock) -> None:
        self.server = server
        self.clock = clock
        self.engine, self.sink = Engine(server), Sink()
        #: The declared history of all channels.
        self.declared: History | None = HISTORY
        self.repairs = Repairs(self.engine, lambda channel: self.declared, clock)
        self.loop = asyncio.get_running_loop()

    async def subscribe(self, channel: str) -> tuple[Feed, Subscriber]:
        feed = Feed(channel, self.loop.call_soon, self.repairs.begin, history=HISTORY)
        subscriber = Subscriber()
        feed.hold()
        self.sink.feeds[channel] = feed
        self.repairs.add(feed)
        feed.opened(*await self.engine.subscribe(channel, HISTORY))
        feed.join(subscriber, PLAIN)
        return feed, subscriber

    async def publish(self, channel: str, text: str) -> Position:
        return await self.engine.publish(
            Publication(channel, text.encode(), "text", id=f"id {text}"), HISTORY
        )

    def set_back(self, channel: str, lost: int) -> None:
        set_back(self.server.memory, channel, lost)

    async def advance(self, seconds: float) -> None:
        """Let time pass at once, then let tasks work."""
        self.clock.advance(seconds)
        self.repairs.tick(self.clock())
        await self.settled()

    async def settled(self) -> None:
        """Let tasks work that do not wait for anything."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def round(self) -> None:
        """Every channel has its turn."""
        self.repairs.tick(self.clock())
        await self.advance(CHECK_INTERVAL)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    clock = FakeClock()
    node = Node(FakeServer(clock), clock)
    await node.engine.start(node.sink)
    yield node
    await node.repairs.stop()
    await node.engine.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# The regular check


async def test_channels_are_compared_a_few_at_a_time_all_over_the_interval(node: Node) -> None:
    channels = [f"room:{number}" for number in range(1000)]
    for channel in channels:
        await node.subscribe(channel)
        await node.publish(channel, "1")
    asked = []
    for _ in range(int(CHECK_INTERVAL) + 2):
        await node.advance(1)
        asked.append(sum(map(len, node.engine.asked)))
    assert max(later - earlier for earlier, later in pairwise(asked)) <= 1000 / CHECK_INTERVAL + 1
    assert max(map(len, node.engine.asked)) <= BATCH
    assert {channel for batch in node.engine.asked for channel in batch} == set(channels)
    assert node.engine.reads == []


async def test_after_a_long_pause_channels_are_still_compared_in_batches(node: Node) -> None:
    for number in range(BATCH * 2 + 1):
        await node.subscribe(f"room:{number}")
    await node.round()
    assert [len(batch) for batch in node.engine.asked] == [BATCH, BATCH, 1]


async def test_publications_are_delivered_while_channels_are_compared(node: Node) -> None:
    feed, subscriber = await node.subscribe("chat")
    node.engine.gate.clear()
    await node.round()
    assert node.engine.asked == [["chat"]]
    await node.publish("chat", "1")
    await node.publish("chat", "2")
    await until(lambda: subscriber.received == ["1", "2"])
    # The feed has moved on since the engine was asked; that is not an engine that was set back.
    node.engine.gate.set()
    await node.settled()
    assert not feed.is_repairing
    assert node.engine.reads == []
    assert subscriber.breaks == []


async def test_a_publication_that_is_under_way_costs_no_repair(node: Node) -> None:
    feed, subscriber = await node.subscribe("chat")
    node.sink.loses = True
    await node.publish("chat", "1")
    node.sink.loses = False
    await node.round()
    assert node.engine.asked == [["chat"]]
    (late,) = (await node.engine.history("chat")).publications
    node.engine.reads.clear()
    feed.publish(late)
    await node.advance(2 * GRACE)
    assert node.engine.reads == []
    assert subscriber.received == ["1"]


async def test_a_channel_in_which_publications_come_late_is_not_repaired_as_long_as_they_come(
    node: Node,
) -> None:
    feed, subscriber = await node.subscribe("chat")
    node.sink.loses = True
    for text in ("1", "2", "3"):
        await node.publish("chat", text)
    node.sink.loses = False
    late = list((await node.engine.history("chat")).publications)
    node.engine.reads.clear()
    await node.round()
    for each in late:
        feed.publish(each)
        await node.advance(2 * GRACE)
    assert node.engine.reads == []
    assert subscriber.received == ["1", "2", "3"]


async def test_a_lost_last_publication_is_repaired_after_the_grace(node: Node) -> None:
    _, subscriber = await node.subscribe("chat")
    node.sink.loses = True
    await node.publish("chat", "1")
    await node.round()
    assert subscriber.received == []
    await node.advance(2 * GRACE)
    assert subscriber.received == ["1"]
    assert node.engine.reads == ["chat"]


@pytest.mark.parametrize("again", [0, 1])
async def test_a_server_that_was_set_back_is_noticed_by_the_regular_check(node: Node, again: int) -> None:
    """Also by a feed that has not seen any publication, and when the offset has been given out again."""
    await node.publish("chat", "1")
    await node.publish("chat", "2")
    feed, subscriber = await node.subscribe("chat")
    before = feed.position
    node.set_back("chat", 1)
    node.sink.loses = True
    for number in range(again):
        await node.publish("chat", f"again {number}")
    await node.round()
    assert len(subscriber.breaks) == 1
    assert feed.position.epoch != before.epoch


async def test_a_check_that_fails_is_made_again(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    _, subscriber = await node.subscribe("chat")
    node.sink.loses = True
    await node.publish("chat", "1")
    node.engine.is_disconnected = True
    await node.round()
    node.engine.is_disconnected = False
    await node.advance(CHECK_INTERVAL)
    await node.advance(2 * GRACE)
    assert subscriber.received == ["1"]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


# After an outage


async def test_after_an_outage_only_channels_that_differ_are_read(node: Node) -> None:
    subscribers = []
    for number in range(BATCH + 5):
        _, subscriber = await node.subscribe(f"room:{number}")
        await node.publish(f"room:{number}", "1")
        subscribers.append(subscriber)
    node.sink.loses = True
    await node.publish("room:7", "missed")
    node.sink.loses = False
    node.repairs.verify()
    await node.settled()
    assert [len(batch) for batch in node.engine.asked] == [BATCH, 5]
    assert node.engine.reads == ["room:7"]
    assert subscribers[7].received == ["1", "missed"]
    assert [subscriber.received for subscriber in subscribers if subscriber is not subscribers[7]] == [
        ["1"]
    ] * (BATCH + 4)


async def test_publications_before_the_comparison_do_not_hide_that_the_server_was_set_back(
    node: Node,
) -> None:
    await node.publish("chat", "1")
    feed, subscriber = await node.subscribe("chat")
    before = feed.position
    node.set_back("chat", 1)
    node.sink.loses = True
    await node.publish("chat", "another 1")
    node.sink.loses = False
    node.repairs.verify()
    # The next offset, after one that the subscriber has not got.
    await node.publish("chat", "2")
    await node.settled()
    assert subscriber.received == []
    assert len(subscriber.breaks) == 1
    assert feed.position.epoch != before.epoch


async def test_publications_before_the_comparison_are_delivered_in_order(node: Node) -> None:
    _, subscriber = await node.subscribe("chat")
    await node.publish("chat", "1")
    node.engine.gate.clear()
    node.repairs.verify()
    await until(lambda: bool(node.engine.asked))
    await node.publish("chat", "2")
    node.engine.gate.set()
    await node.settled()
    assert subscriber.received == ["1", "2"]
    assert node.engine.reads == []


async def test_an_outage_during_the_comparison_is_followed_by_another_comparison(node: Node) -> None:
    _, subscriber = await node.subscribe("chat")
    node.engine.gate.clear()
    node.repairs.verify()
    await until(lambda: bool(node.engine.asked))
    node.sink.loses = True
    await node.publish("chat", "missed")
    node.repairs.verify()
    node.engine.gate.set()
    await node.settled()
    assert subscriber.received == ["missed"]
    assert node.engine.asked == [["chat"], ["chat"]]


async def test_a_comparison_is_tried_again_until_the_engine_answers(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Any] = [EngineUnavailable("The test refuses."), ValueError("a bug"), []]
    tops = node.engine.tops

    async def flaky(channels: Sequence[str]) -> Sequence[Top]:
        if not answers:
            return await tops(channels)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    monkeypatch.setattr(node.engine, "tops", flaky)
    _, subscriber = await node.subscribe("chat")
    node.repairs.verify()
    await node.publish("chat", "1")
    # It waits a little after each failure.
    await until(lambda: subscriber.received == ["1"])
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 2


# An engine that has lost the channel


@pytest.mark.parametrize("noticed", ["by a publication", "by the regular check", "after an outage"])
async def test_a_lost_channel_is_declared_again(node: Node, noticed: str) -> None:
    feed, subscriber = await node.subscribe("chat")
    await node.publish("chat", "1")
    await node.server.restart()
    node.engine.subscribed.clear()
    # By a publisher that does not know the declaration.
    plain = Publication("chat", b"2", "text", id="2")
    if noticed == "by a publication":
        assert await node.engine.publish(plain) == START
        await node.settled()
    elif noticed == "by the regular check":
        await node.round()
    else:
        node.repairs.verify()
        await node.settled()
    assert node.engine.subscribed == [("chat", HISTORY)]
    assert len(subscriber.breaks) == 1
    position = await node.engine.publish(plain)
    assert position == Position(1, feed.position.epoch)
    await until(lambda: subscriber.received[-1:] == ["2"])


@pytest.mark.parametrize("after_outage", [True, False])
async def test_a_feed_without_a_position_gets_one_if_its_channel_is_declared(
    node: Node, after_outage: bool
) -> None:
    """As after an engine that lost its data twice, the second time while the channel was being declared."""
    feed, subscriber = await node.subscribe("chat")
    await node.server.restart()
    feed.position, feed.last_id = START, ""
    if after_outage:
        node.repairs.verify()
        await node.settled()
    else:
        await node.round()
    assert node.engine.subscribed[-1] == ("chat", HISTORY)
    position = await node.engine.publish(Publication("chat", b"1", "text", id="1"))
    assert position.offset == 1
    await until(lambda: subscriber.received == ["1"])


async def test_a_channel_that_is_not_declared_is_left_as_it_is(
    node: Node,
) -> None:
    node.declared = None
    await node.subscribe("chat")
    await node.server.restart()
    node.engine.subscribed.clear()
    await node.round()
    assert node.engine.subscribed == []


async def test_an_engine_that_failed_to_declare_a_channel_is_asked_until_it_has(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it has declared it on the server, and then lost the answer and its subscription."""
    feed, subscriber = await node.subscribe("chat")
    await node.server.restart()
    subscribe = node.engine.subscribe
    attempts = 0

    async def fail_once(channel: str, history: History | None = None) -> Top:
        nonlocal attempts
        attempts += 1
        top = await subscribe(channel, history)
        if attempts == 1:
            await node.engine.unsubscribe(channel)
            raise EngineUnavailable("no answer")
        return top

    monkeypatch.setattr(node.engine, "subscribe", fail_once)
    node.repairs.verify()
    await until(lambda: not feed.is_repairing)
    assert attempts == 2
    await node.publish("chat", "1")
    await until(lambda: subscriber.received == ["1"])


async def test_a_channel_that_was_left_and_joined_again_is_repaired_by_itself(node: Node) -> None:
    """The repair of the feed that was left may end at any time, and is not waited for in its place."""
    left, _ = await node.subscribe("chat")
    feed, _ = await node.subscribe("chat")
    feed.verify()
    repair = node.repairs.get(feed)
    left.verify()
    assert repair is not None
    assert node.repairs.get(feed) is repair
    assert node.repairs.get(left) is not repair
    before = asyncio.all_tasks()
    await node.repairs.stop()
    assert not {repair} & asyncio.all_tasks()
    assert len(before) - len(asyncio.all_tasks()) == 2


async def test_repairs_that_have_stopped_begin_nothing(node: Node) -> None:
    feed, _ = await node.subscribe("chat")
    await node.repairs.stop()
    feed.verify()
    node.repairs.verify()
    assert node.repairs.get(feed) is None
