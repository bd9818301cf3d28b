"""Channels with history: declared, published to, read, joined and resumed, on an engine that can fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient

from hubbub import (
    EngineUnavailable,
    History,
    Hub,
    Position,
    Publication,
    Unrecoverable,
)
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.history import HistoryPage
from hubbub.core.publication import START
from hubbub.engines.base import Top
from hubbub.engines.memory import MemoryEngine
from hubbub.node import node as node_module
from hubbub.node import repairs, subscriptions
from hubbub.node import replay as replay_module
from hubbub.node.control import CONTROL
from hubbub.node.node import Node
from tests.clients import DEADLINE
from tests.subscriber import Subscriber

HISTORY = History(size=50, ttl=60)


class FlakyEngine(MemoryEngine):
    """Loses announcements and goes away when it is told to; counts what it is asked for."""

    across_processes: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__("memory://")
        self.is_away = False
        self.loses = False
        self.reads = 0
        self.subscribed: list[str] = []
        self.unsubscribed: list[str] = []

    async def start(self, sink: Any) -> None:
        await super().start(sink)
        self.node, self._sink = sink, self

    def on_publication(self, publication: Publication) -> None:
        if not self.loses:
            self.node.on_publication(publication)

    def on_disconnect(self, reason: str) -> None:
        pass

    def on_reconnect(self) -> None:
        raise AssertionError("called on the node")

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        await self._respond()
        self.subscribed.append(channel)
        return await super().subscribe(channel, history)

    async def unsubscribe(self, channel: str) -> None:
        await self._respond()
        self.unsubscribed.append(channel)

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        self.reads += 1
        await self._respond()
        return await super().history(channel, since, limit, reverse)

    def set_back(self, channel: str, lost: int) -> None:
        """To an earlier state, as a server that had not saved the last ones."""
        stream = self._streams[channel]
        stream.offset -= lost
        for _ in range(lost):
            stream.publications.pop()

    async def _respond(self) -> None:
        await asyncio.sleep(0.001)
        if self.is_away:
            raise EngineUnavailable("away")


@pytest.fixture
def engine() -> FlakyEngine:
    return FlakyEngine()


@pytest.fixture
async def node(engine: FlakyEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(node_module, "TICK", 0.01)
    monkeypatch.setattr(subscriptions, "LINGER", 0.05)
    node = Node(engine, lambda name: ChannelDeclaration(name, HISTORY) if name == "chat" else None)
    await node.start()
    yield node
    await node.stop(1012, "", 1)


async def say(node: Node, *texts: str, channel: str = "chat") -> list[Position]:
    return [
        await node.publish(Publication(channel, text.encode(), "text", None, f"id-{text}")) for text in texts
    ]


# Leaving


async def test_a_channel_whose_subscription_outlives_who_asked_for_it_is_left_in_the_end(
    node: Node, engine: FlakyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe, may_subscribe, left = engine.subscribe, asyncio.Event(), asyncio.Event()

    async def slow_subscribe(channel: str, history: History | None = None) -> Top:
        await may_subscribe.wait()
        return await subscribe(channel, history)

    async def unsubscribe(channel: str) -> None:
        left.set()

    monkeypatch.setattr(engine, "subscribe", slow_subscribe)
    monkeypatch.setattr(engine, "unsubscribe", unsubscribe)
    joining = asyncio.create_task(node.join("chat", Subscriber()))
    await asyncio.sleep(0)
    joining.cancel()
    await asyncio.wait([joining])
    # Until well after the node has had a look at what it may leave.
    now = asyncio.get_running_loop().time()
    for later in (1, 2, 3):
        node._subscriptions.tick(now + later)
    may_subscribe.set()
    async with asyncio.timeout(10):
        await left.wait()


# Resume and resuming


async def test_who_resumes_gets_what_was_missed_and_then_what_is_new(node: Node) -> None:
    positions = await say(node, "1", "2", "3")
    member = Subscriber()
    assert await node.join("chat", member, since=positions[0]) == positions[-1]
    await say(node, "4")
    await member.hears("2", "3", "4")


@pytest.mark.parametrize(("history", "heard"), [(0, ["4"]), (2, ["2", "3", "4"]), (99, ["1", "2", "3", "4"])])
async def test_who_joins_may_have_the_last_ones(node: Node, history: int, heard: list[str]) -> None:
    positions = await say(node, "1", "2", "3")
    member = Subscriber()
    assert await node.join("chat", member, history=history) == positions[-1]
    await say(node, "4")
    await member.hears(*heard)


async def test_start_is_before_everything(node: Node) -> None:
    await say(node, "1", "2")
    member = Subscriber()
    await node.join("chat", member, since=START)
    await member.hears("1", "2")


async def test_what_is_not_there_any_more_is_unrecoverable(node: Node) -> None:
    first, *_, last = await say(node, *map(str, range(60)))
    for since in (first, Position(3, "another"), Position(99, last.epoch), START):
        with pytest.raises(Unrecoverable) as caught:
            await node.join("chat", Subscriber(), since=since)
        assert (caught.value.offset, caught.value.epoch) == last


@pytest.mark.parametrize("options", [{"ahead": True}, {"history": 2}])
async def test_who_joins_a_node_that_is_behind_breaks_nobodys_run(
    node: Node, engine: FlakyEngine, options: dict[str, Any]
) -> None:
    there, comes = Subscriber(), Subscriber("bob")
    await node.join("chat", there)
    await say(node, "1")
    await there.hears("1")
    # This node does not hear for a moment what others have got already.
    engine.loses = True
    positions = await say(node, "2", "3", "4", "5", "6")
    engine.loses = False
    if "ahead" in options:
        await node.join("chat", comes, since=positions[-2])
    else:
        await node.join("chat", comes, history=options["history"])
    await say(node, "7")
    await there.hears("1", "2", "3", "4", "5", "6", "7")
    assert comes.received[-2:] == ["6", "7"]
    assert there.breaks == comes.breaks == []


async def test_a_reconnect_storm_costs_the_engine_one_read(
    node: Node, engine: FlakyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, 5000 clients take longer than what was read is shared for.
    monkeypatch.setattr(replay_module, "FRESH", DEADLINE)
    positions = await say(node, *map(str, range(20)))
    members = [Subscriber(str(number)) for number in range(5000)]
    await asyncio.gather(*(node.join("chat", member, since=positions[9]) for member in members))
    assert {tuple(member.received) for member in members} == {tuple(map(str, range(10, 20)))}
    assert engine.reads == 1
    assert engine.subscribed == [CONTROL, "chat"]


async def test_a_client_that_is_ahead_of_this_node_waits_for_it(node: Node, engine: FlakyEngine) -> None:
    await node.join("chat", Subscriber("here"))
    engine.loses = True
    positions = await say(node, "1", "2")
    member = Subscriber()
    assert await node.join("chat", member, since=positions[-1]) == positions[-1]
    engine.loses = False
    await say(node, "3")
    await member.hears("3")


async def test_members_join_and_resume_while_others_publish(node: Node) -> None:
    start = (await say(node, "first"))[0]
    members: list[Subscriber] = []

    async def publish(name: str) -> None:
        for number in range(100):
            await say(node, f"{name}{number}")
            await asyncio.sleep(0)

    async def come() -> None:
        for _ in range(20):
            member = Subscriber(str(len(members)))
            members.append(member)
            await node.join("chat", member, since=start)
            await asyncio.sleep(0.001)

    # 50 are kept, so the last to come would be too late.
    node._channel_of = lambda name: ChannelDeclaration(name, History(size=1000))
    await asyncio.gather(publish("a"), publish("b"), come(), come())
    await asyncio.sleep(0.01)
    assert len({tuple(member.received) for member in members}) == 1
    assert len(members[0].received) == 200


# Repair


async def test_what_the_network_lost_is_repaired_from_history(node: Node, engine: FlakyEngine) -> None:
    member = Subscriber()
    await node.join("chat", member)
    await say(node, "1")
    engine.loses = True
    await say(node, "2", "3")
    engine.loses = False
    await say(node, "4", "5")
    await member.hears("1", "2", "3", "4", "5")
    assert member.breaks == []


async def test_a_repair_goes_on_until_the_engine_is_back(node: Node, engine: FlakyEngine) -> None:
    member = Subscriber()
    await node.join("chat", member)
    engine.loses = True
    await say(node, "1")
    engine.loses = False
    engine.is_away = True
    await say(node, "2", "3")
    await asyncio.sleep(0.2)
    assert engine.reads > 1
    assert member.received == []
    engine.is_away = False
    await say(node, "4")
    await member.hears("1", "2", "3", "4")


async def test_after_a_reconnect_the_tail_is_fetched(node: Node, engine: FlakyEngine) -> None:
    member = Subscriber()
    await node.join("chat", member)
    engine.loses = True
    await say(node, "1", "2")
    node.on_reconnect()
    await member.hears("1", "2")


async def test_a_lost_tail_is_noticed_by_the_check(
    node: Node, engine: FlakyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repairs, "CHECK", 0.02)
    monkeypatch.setattr(repairs, "GRACE", 0.02)
    member = Subscriber()
    await node.join("chat", member)
    engine.loses = True
    await say(node, "1")
    await member.hears("1")


async def test_what_cannot_be_repaired_is_told(node: Node, engine: FlakyEngine) -> None:
    member = Subscriber()
    await node.join("chat", member)
    await say(node, "1")
    await engine.remove_history("chat")
    last = (await say(node, "2"))[0]
    async with asyncio.timeout(DEADLINE):
        while not member.breaks:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert member.breaks == [last]
    assert member.received == ["1"]


@pytest.mark.parametrize("published", [0, 1, 3, 5])
async def test_who_was_away_when_the_engine_was_set_back_is_told(
    node: Node, engine: FlakyEngine, published: int
) -> None:
    """Even if its offset has been given out again when it comes back, and more."""
    member = Subscriber()
    await node.join("chat", member)
    await say(node, "1", "2", "3", "4", "5")
    away = node.position("chat")
    engine.set_back("chat", 3)
    engine.loses = True
    await say(node, *(f"again {number}" for number in range(published)))
    engine.loses = False
    node.on_reconnect()
    async with asyncio.timeout(DEADLINE):
        while not member.breaks:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    with pytest.raises(Unrecoverable):
        await node.join("chat", Subscriber("away"), since=away)
    # There is nobody who could take the one for the other.
    assert node.position("chat").epoch != away.epoch
    late = Subscriber("late")
    await node.join("chat", late)
    await say(node, "new")
    await late.hears("new")
    assert len(member.breaks) == 1


async def test_a_new_epoch_is_not_begun_twice(node: Node, engine: FlakyEngine) -> None:
    """Two nodes may find the same at the same time."""
    await node.join("chat", Subscriber())
    before = node.position("chat")
    await engine.renew_epoch("chat", before.epoch)
    after = (await engine.history("chat")).position
    assert after.epoch != before.epoch
    await engine.renew_epoch("chat", before.epoch)
    assert (await engine.history("chat")).position == after


# Subscriptions to the engine


async def test_a_channel_without_members_is_left_after_a_while(node: Node, engine: FlakyEngine) -> None:
    member = Subscriber()
    await node.join("chat", member)
    node.leave("chat", member)
    await node.join("chat", member)
    await asyncio.sleep(0.2)
    assert engine.unsubscribed == []
    node.leave("chat", member)
    async with asyncio.timeout(DEADLINE):
        while not engine.unsubscribed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert node.stats()["channels"] == 0
    # And it can be joined again.
    await say(node, "1")
    await node.join("chat", member, since=START)
    await member.hears("1")
    assert engine.subscribed == [CONTROL, "chat", "chat"]


async def test_an_engine_that_is_away_refuses_who_joins_and_takes_them_later(
    node: Node, engine: FlakyEngine
) -> None:
    engine.is_away = True
    results = await asyncio.gather(
        *(node.join("chat", Subscriber(str(number))) for number in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [EngineUnavailable] * 3
    engine.is_away = False
    member = Subscriber()
    await node.join("chat", member)
    await say(node, "1")
    await member.hears("1")


async def test_who_gives_up_joining_does_not_stop_the_others(node: Node) -> None:
    one, other = Subscriber("one"), Subscriber("other")
    joining = asyncio.create_task(node.join("chat", one))
    staying = asyncio.create_task(node.join("chat", other))
    await asyncio.sleep(0)
    joining.cancel()
    await staying
    await say(node, "1")
    await other.hears("1")
    assert one.received == []


# The hub


async def test_a_hub_keeps_what_a_channel_is_declared_to_keep() -> None:
    hub = Hub()
    hub.channel("room:{id}", history=History(size=3))
    async with hub:
        positions = [await hub.publish("room:1", str(number)) for number in range(5)]
        assert [position.offset for position in positions] == [1, 2, 3, 4, 5]
        assert await hub.publish("plain", "x") == START
        assert [each.data for each in await hub.history("room:1")] == [b"2", b"3", b"4"]
        assert [each.data for each in await hub.history("room:1", since=positions[3])] == [b"4"]
        assert await hub.history("room:1", since=positions[4]) == []
        assert [each.data for each in await hub.history("room:1", limit=1, reverse=True)] == [b"4"]
        for since in (positions[0], START, Position(2, "another")):
            with pytest.raises(Unrecoverable):
                await hub.history("room:1", since=since)
        await hub.remove_history("room:1")
        assert await hub.history("room:1") == []
        with pytest.raises(Unrecoverable):
            await hub.history("room:1", since=positions[4])


async def test_a_key_publishes_once() -> None:
    hub = Hub()
    hub.channel("chat", history=HISTORY)
    async with hub:
        first = await hub.publish("chat", "paid", idempotency_key="order-1")
        assert await hub.publish("chat", "paid", idempotency_key="order-1") == first
        assert len(await hub.history("chat")) == 1


# On a socket


@contextmanager
def client_of(hub: Hub) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(hub.router)

    @app.websocket("/ws")
    async def feed(websocket: WebSocket, offset: int = 0, epoch: str | None = None) -> None:
        async with hub.connection(websocket) as client:
            since = Position(offset, epoch) if epoch is not None else None
            try:
                position = await client.subscribe("chat", since=since)
            except Unrecoverable as exc:
                await client.send_json({"lost": exc.offset})
                return
            await client.send_json(position)
            async for text in client.iter_text():
                await hub.publish("chat", text)

    @app.delete("/history")
    async def forget() -> None:
        await hub.remove_history("chat")

    with TestClient(app) as client:
        yield client


def test_a_client_with_a_position_comes_back_without_a_gap() -> None:
    hub = Hub()
    hub.channel("chat", history=HISTORY)
    with client_of(hub) as client:
        with client.websocket_connect("/ws") as first:
            offset, epoch = first.receive_json()
            first.send_text("1")
            assert first.receive_text() == "1"
            offset += 1
        with client.websocket_connect("/ws") as other:
            other.receive_json()
            for text in ("2", "3"):
                other.send_text(text)
                other.receive_text()
            with client.websocket_connect(f"/ws?offset={offset}&epoch={epoch}") as again:
                assert [again.receive_text(), again.receive_text()] == ["2", "3"]
                assert again.receive_json() == [3, epoch]
                other.send_text("4")
                assert again.receive_text() == "4"
            with client.websocket_connect(f"/ws?offset=1&epoch=other{epoch}") as lost:
                assert lost.receive_json() == {"lost": 4}


def test_a_client_whose_run_breaks_is_closed_so_that_it_comes_back() -> None:
    hub = Hub()
    hub.channel("chat", history=HISTORY)
    with client_of(hub) as client, client.websocket_connect("/ws") as socket:
        socket.receive_json()
        socket.send_text("1")
        assert socket.receive_text() == "1"
        assert client.delete("/history").status_code == 200
        socket.send_text("2")
        closing = socket.receive()
        assert (closing["type"], closing["code"]) == ("websocket.close", 3010)
        assert closing["reason"].startswith("insufficient state: 'chat' continues from")


async def test_who_comes_as_a_subscription_ends_does_not_stop_the_loop(node: Node) -> None:
    """Joins that arrive in the very turn in which another's subscription is done."""
    members = [Subscriber(str(number)) for number in range(50)]

    async def come(member: Subscriber, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await node.join("chat", member)

    await asyncio.gather(*(come(member, turns) for turns, member in enumerate(members)))
    await say(node, "1")
    assert {tuple(member.received) for member in members} <= {("1",), ()}
    for member in members:
        await member.hears("1")
