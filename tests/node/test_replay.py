"""What clients missed is read and handed over as they take it, also on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hubbub import (
    EngineUnavailable,
    History,
    Position,
    Publication,
    Unrecoverable,
)
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.frames import FRAME_OVERHEAD
from hubbub.core.history import HistoryPage
from hubbub.core.publication import START
from hubbub.node import node as node_module
from hubbub.node import repairs, replay, subscriptions
from hubbub.node.node import Node
from hubbub.protocols.envelope import ENVELOPE
from tests.clients import DEADLINE, connect, connect_deaf, eventually, http_client, receive_json
from tests.subscriber import Subscriber
from tests.test_streams import FlakyEngine, say
from tests.uvicorn_process import ROOT, Server, serve

SIZE = 1000


class CountingEngine(FlakyEngine):
    """Notes the bytes of each page that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[int] = []

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        page = await super().history(channel, since, limit, reverse)
        if channel == "chat":
            self.pages.append(sum(len(each.data) + FRAME_OVERHEAD for each in page.publications))
        return page


class Slow(Subscriber):
    """A member that takes a piece when it is told to."""

    def __init__(self, name: str = "ann") -> None:
        super().__init__(name)
        self.pieces = asyncio.Semaphore(0)
        self.waits = asyncio.Event()

    async def ready(self) -> int:
        self.waits.set()
        await self.pieces.acquire()
        self.waits.clear()
        return await super().ready()

    async def takes(self, pieces: int) -> None:
        """Take so many, and wait until it is asked for the next."""
        for _ in range(pieces):
            await asyncio.wait_for(self.waits.wait(), DEADLINE)
            self.waits.clear()
            self.pieces.release()
        await asyncio.wait_for(self.waits.wait(), DEADLINE)


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
async def node(engine: CountingEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(node_module, "TICK", 0.01)
    monkeypatch.setattr(subscriptions, "LINGER", 0.05)
    node = Node(engine, lambda name: ChannelDeclaration(name, History(size=2000)) if name == "chat" else None)
    await node.start()
    yield node
    await node.stop(1012, "", 1)


def texts(count: int, name: str = "") -> list[str]:
    return [f"{name}{number}".ljust(SIZE, ".") for number in range(count)]


async def test_history_is_read_in_pages_of_bounded_size(node: Node, engine: CountingEngine) -> None:
    said = texts(500)
    await say(node, *said)
    member = Subscriber()
    assert (await node.join("chat", member, since=START)).offset == 500
    assert member.received == said
    assert len(engine.pages) > 5
    assert max(engine.pages) <= max(replay.PIECE, replay.FIRST_READ * (SIZE + FRAME_OVERHEAD))


async def test_nothing_is_read_for_a_client_that_takes_nothing(node: Node, engine: CountingEngine) -> None:
    await say(node, *texts(500))
    member = Slow()
    joining = asyncio.create_task(node.join("chat", member, since=START))
    # Asked once to find out that something is missing, once more to hand it over.
    await member.takes(2)
    assert len(engine.pages) == 1
    assert len(member.received) == replay.FIRST_READ
    assert node.stats()["subscriptions"] == 0
    joining.cancel()
    await asyncio.wait([joining])


async def test_what_is_published_during_a_replay_is_in_its_place(node: Node) -> None:
    before, during, after = texts(200, "before"), texts(200, "during"), texts(3, "after")
    await say(node, *before)
    member, there = Slow(), Subscriber("there")
    await node.join("chat", there)
    joining = asyncio.create_task(node.join("chat", member, since=START))
    for text in during:
        await say(node, text)
        if member.waits.is_set():
            member.pieces.release()
    while not joining.done():
        member.pieces.release()
        await asyncio.sleep(0)
    await say(node, *after)
    await member.hears(*before, *during, *after)
    await there.hears(*during, *after)


async def test_clients_that_come_back_together_share_reads(node: Node, engine: CountingEngine) -> None:
    said = texts(500)
    await say(node, *said)
    members = [Subscriber(str(number)) for number in range(100)]
    await asyncio.gather(*(node.join("chat", member, since=START) for member in members))
    assert all(member.received == said for member in members)
    alone = 500 * (SIZE + FRAME_OVERHEAD) / replay.PIECE
    assert len(engine.pages) < 3 * alone


async def test_clients_that_missed_the_same_share_one_read_however_long_they_take(
    node: Node, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "FRESH", -1.0)
    positions = await say(node, *texts(15))
    members = [Subscriber(str(number)) for number in range(100)]
    await asyncio.gather(*(node.join("chat", member, since=positions[4]) for member in members))
    assert all(member.received == texts(15)[5:] for member in members)
    assert len(engine.pages) == 1


async def test_what_was_read_for_another_client_is_read_again_when_it_is_forgotten_meanwhile(
    node: Node, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "FRESH", -1.0)
    said = [str(number) for number in range(1500)]
    await say(node, *said[:10])
    first, slow = Subscriber("first"), Slow("slow")
    slow.pieces.release()
    reading = asyncio.create_task(node.join("chat", first, since=START))
    joining = asyncio.create_task(node.join("chat", slow, since=START))
    await reading
    await asyncio.wait_for(slow.waits.wait(), 5)
    assert len(engine.pages) == 1
    # More than the feed remembers.
    await say(node, *said[10:])
    for _ in range(1000):
        slow.pieces.release()
    await asyncio.wait_for(joining, 10)
    assert slow.received == said
    assert slow.breaks == []


async def test_a_channel_whose_only_client_takes_nothing_any_more_stands_nowhere(
    node: Node, engine: CountingEngine
) -> None:
    class Gone(Subscriber):
        async def ready(self) -> int:
            return 0

    await say(node, "1")
    await node.join("chat", Gone(), since=START)
    await eventually(lambda: engine.unsubscribed == ["chat"])
    assert node.position("chat") == START


class LateEngine(FlakyEngine):
    """Hands over publications when it is told to: until then, they are on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.is_late = False
        self.on_their_way: list[Publication] = []

    def on_publication(self, publication: Publication) -> None:
        if self.is_late and publication.channel == "chat":
            self.on_their_way.append(publication)
        else:
            super().on_publication(publication)

    def arrive(self) -> None:
        self.is_late = False
        for publication in self.on_their_way:
            super().on_publication(publication)
        self.on_their_way.clear()


@pytest.fixture
async def late(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Node, LateEngine]]:
    """A node, and an engine that keeps a single publication of each channel."""
    monkeypatch.setattr(node_module, "TICK", 0.01)
    engine = LateEngine()
    node = Node(engine, lambda name: ChannelDeclaration(name, History(size=1)) if name == "chat" else None)
    await node.start()
    yield node, engine
    await node.stop(1012, "", 1)


async def test_a_client_that_comes_back_costs_no_member_what_is_on_its_way(
    late: tuple[Node, LateEngine],
) -> None:
    node, engine = late
    there = Subscriber("there")
    await node.join("chat", there)
    (position, *_) = await say(node, "1", "2", "3")
    engine.is_late = True
    await say(node, "4", "5", "6")
    with pytest.raises(Unrecoverable):
        await node.join("chat", Subscriber(), since=position)
    engine.arrive()
    await there.hears("1", "2", "3", "4", "5", "6")
    assert there.breaks == []


async def test_what_a_read_shows_to_be_lost_is_told_in_a_moment(
    late: tuple[Node, LateEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repairs, "GRACE", 0.05)
    node, engine = late
    there = Subscriber("there")
    await node.join("chat", there)
    (position, *_) = await say(node, "1", "2", "3")
    engine.loses = True
    await say(node, "4", "5", "6")
    with pytest.raises(Unrecoverable):
        await node.join("chat", Subscriber(), since=position)
    async with asyncio.timeout(5):
        while not there.breaks:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert there.received == ["1", "2", "3"]


async def test_a_client_that_is_cancelled_in_the_middle_leaves_nothing_behind(
    node: Node, engine: CountingEngine
) -> None:
    await say(node, *texts(500))
    member = Slow()
    joining = asyncio.create_task(node.join("chat", member, since=START))
    await member.takes(3)
    joining.cancel()
    await asyncio.wait([joining])
    assert joining.cancelled()
    heard = len(member.received)
    await say(node, "more")
    await eventually(lambda: engine.unsubscribed == ["chat"])
    assert len(member.received) == heard
    assert node.stats()["channels"] == 0


async def test_a_client_that_leaves_in_the_middle_is_handed_nothing_more(node: Node) -> None:
    await say(node, *texts(500))
    member = Slow()
    joining = asyncio.create_task(node.join("chat", member, since=START))
    await member.takes(3)
    heard = len(member.received)
    node.leave("chat", member)
    member.pieces.release()
    position = await joining
    assert position.offset == heard < 500
    await say(node, "more")
    assert len(member.received) == heard
    assert node.stats()["subscriptions"] == 0


async def test_a_replay_goes_on_after_an_outage(node: Node, engine: CountingEngine) -> None:
    said = texts(500)
    await say(node, *said)
    member = Slow()
    joining = asyncio.create_task(node.join("chat", member, since=START))
    await member.takes(2)
    engine.is_away = True
    reads = engine.reads
    while engine.reads < reads + 2:
        member.pieces.release()
        await asyncio.sleep(0)
    engine.is_away = False
    while not joining.done():
        member.pieces.release()
        await asyncio.sleep(0.001)
    assert (await joining).offset == 500
    assert member.received == said


async def test_an_outage_before_the_first_piece_is_an_error(node: Node, engine: CountingEngine) -> None:
    await say(node, *texts(5))
    await node.join("chat", Subscriber("there"))
    engine.is_away = True
    member = Subscriber()
    with pytest.raises(EngineUnavailable):
        await node.join("chat", member, since=START)
    assert member.received == []


@pytest.mark.parametrize("piece", [0, 2])
async def test_history_that_is_removed_during_a_replay_is_told(
    node: Node, engine: CountingEngine, piece: int
) -> None:
    first = (await say(node, *texts(500)))[0]
    there, member = Subscriber("there"), Slow()
    await node.join("chat", there)
    joining = asyncio.create_task(node.join("chat", member, since=first))
    await member.takes(piece)
    await engine.remove_history("chat")
    top = (await say(node, "new"))[0]
    await eventually(lambda: there.breaks == [top])
    while not joining.done():
        member.pieces.release()
        await asyncio.sleep(0)
    if piece == 0:
        # Nothing has been handed over: that is unrecoverable from the beginning.
        with pytest.raises(Unrecoverable):
            await joining
        assert member.received == []
        assert member.breaks == []
    else:
        assert await joining == top
        assert member.breaks == [top]


async def test_a_client_that_wants_more_than_is_kept_gets_what_is_kept(node: Node) -> None:
    await say(node, *texts(2010))
    member = Subscriber()
    await node.join("chat", member, history=5000)
    assert member.received == texts(2010)[10:]


async def test_a_channel_that_was_left_and_joined_again_is_replayed_anew(
    node: Node, engine: CountingEngine
) -> None:
    """Also while the exception of an earlier subscription is kept."""
    await say(node, *texts(5))
    await node.join("chat", Subscriber("there"))
    engine.is_away = True
    with pytest.raises(EngineUnavailable) as kept:
        await node.join("chat", Subscriber(), since=START)
    engine.is_away = False
    node.leave("chat", Subscriber("there"))
    await eventually(lambda: engine.unsubscribed == ["chat"])
    member = Subscriber()
    await node.join("chat", member, since=START)
    await say(node, "new")
    await member.hears(*texts(5), "new")
    assert kept.value


async def test_a_subscription_with_envelopes_waits_for_room(node: Node) -> None:
    member = Slow()
    joining = asyncio.create_task(node.join("chat", member, form=ENVELOPE))
    await member.takes(0)
    assert member.received == []
    member.pieces.release()
    await joining
    assert len(member.received) == 1


# On real servers


@pytest.fixture(params=["hubbub run", "uvicorn"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    async with serve(
        "tests.apps.replay:app", tmp_path / "log", command=request.param, cwd=ROOT, probe="/stats"
    ) as server:
        yield server


async def stats(server: Server) -> dict[str, Any]:
    return await server.get_json("/stats")


MESSAGES = 5000
CLIENTS = 20


async def test_memory_is_bounded_for_clients_that_come_back_and_do_not_read(server: Server) -> None:
    """20 MB each, of which no client takes more than a few kilobytes."""
    async with http_client() as http:
        query = {"count": MESSAGES, "size": 4000}
        since = (await http.post(f"{server.http}/fill", params=query)).json()
    before = await stats(server)
    url = f"{server.ws}/chat?since={since}"
    clients = await asyncio.gather(*(connect_deaf(url) for _ in range(CLIENTS)))

    async def all_wait() -> bool:
        return bool((await stats(server))["backlog"] > CLIENTS * replay.PIECE / 2)

    await eventually(all_wait, timeout=60)
    now = await stats(server)
    assert now["backlog"] <= CLIENTS * 1_048_576
    assert now["resident_kib"] - before["resident_kib"] < 60_000
    assert now["slow_disconnects"] == 0
    # Nothing is lost by that: a client that reads gets all of it, in order, and then what is new.
    slow = clients[0]
    slow.transport.resume_reading()
    start = Position.parse(since)
    for offset in range(start.offset + 1, start.offset + MESSAGES + 1):
        message = await receive_json(slow)
        assert message["id"] == f"{offset}:{start.epoch}"
    async with http_client() as http:
        await http.post(f"{server.http}/fill", params={"count": 1, "size": 1})
    assert (await receive_json(slow))["data"] == "x"
    for client in clients:
        client.transport.abort()

    async def all_have_gone() -> bool:
        return bool((await stats(server))["connections"] == 0)

    await eventually(all_have_gone, timeout=60)
    assert (await stats(server))["backlog"] == 0
    assert "Traceback" not in server.log


@pytest.mark.parametrize("name", ["hubbub run", "uvicorn"])
async def test_a_client_that_stops_reading_in_the_middle_is_disconnected_as_slow(
    name: str, tmp_path: Path
) -> None:
    env = {"HUBBUB_TEST_SEND_TIMEOUT": "0.5"}
    target = "tests.apps.replay:app"
    async with serve(target, tmp_path / "log", command=name, cwd=ROOT, probe="/stats", env=env) as server:
        async with http_client() as http:
            query = {"count": MESSAGES, "size": 4000}
            since = (await http.post(f"{server.http}/fill", params=query)).json()
        deaf = await connect_deaf(f"{server.ws}/chat?since={since}")

        async def it_is_gone() -> bool:
            now = await stats(server)
            return bool(now["slow_disconnects"] == 1 and now["connections"] == now["subscriptions"] == 0)

        await eventually(it_is_gone, timeout=60)
        deaf.transport.abort()


async def test_a_client_that_comes_back_is_told_so_first(server: Server) -> None:
    async with http_client() as http:
        since = (await http.post(f"{server.http}/fill", params={"count": 3, "size": 1})).json()
    async with connect(f"{server.ws}/chat?since={since}") as client:
        opening = {"type": "subscribed", "channel": "chat", "id": since, "recovered": True}
        assert await receive_json(client) == opening
        for _ in range(3):
            assert (await receive_json(client))["type"] == "publication"
