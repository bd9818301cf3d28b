"""Replay: publications that clients have missed are read and written as they take them."""

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
from hubbub.core.frames import FRAME_OVERHEAD
from hubbub.core.history import HistoryPage
from hubbub.core.publication import START
from hubbub.node import replay
from hubbub.node.node import TICK, Node
from hubbub.node.repairs import GRACE
from hubbub.node.subscriptions import LINGER
from hubbub.protocols.envelope import ENVELOPE
from tests.clients import DEADLINE, connect, connect_deaf, eventually, http_client, receive_json
from tests.clock import FakeClock
from tests.node.flaky_engine import FlakyEngine, running, say
from tests.subscriber import Subscriber
from tests.uvicorn_process import ROOT, Server, serve

SIZE = 1000


class CountingEngine(FlakyEngine):
    """Records the bytes of each page that is read."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.clock = clock
        self.pages: list[int] = []
        #: Seconds that pass between a read and the next subscriber that could use its page.
        self.pause = 0.0

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        page = await super().history(channel, since, limit, reverse)
        if channel == "chat":
            asyncio.get_running_loop().call_soon(self.clock.advance, self.pause)
            self.pages.append(sum(len(each.data) + FRAME_OVERHEAD for each in page.publications))
        return page


class Slow(Subscriber):
    """A subscriber that takes a piece only when the test lets it."""

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
        """Take so many pieces, and wait until it is offered the next one."""
        for _ in range(pieces):
            await asyncio.wait_for(self.waits.wait(), DEADLINE)
            self.waits.clear()
            self.pieces.release()
        await asyncio.wait_for(self.waits.wait(), DEADLINE)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine(clock: FakeClock) -> CountingEngine:
    return CountingEngine(clock)


@pytest.fixture
async def node(engine: CountingEngine, clock: FakeClock) -> AsyncIterator[Node]:
    async with running(engine, History(size=2000), clock) as node:
        yield node


async def is_left(engine: FlakyEngine, clock: FakeClock) -> None:
    """Wait until the node has left the channel."""
    await clock.pass_time(LINGER + 2 * TICK, TICK)
    await eventually(lambda: engine.unsubscribed == ["chat"])


def texts(count: int, name: str = "") -> list[str]:
    return [f"{name}{number}".ljust(SIZE, ".") for number in range(count)]


async def test_history_is_read_in_pages_of_bounded_size(node: Node, engine: CountingEngine) -> None:
    said = texts(500)
    await say(node, *said)
    subscriber = Subscriber()
    assert (await node.join("chat", subscriber, since=START)).offset == 500
    assert subscriber.received == said
    assert len(engine.pages) > 5
    assert max(engine.pages) <= max(replay.PIECE, replay.FIRST_READ * (SIZE + FRAME_OVERHEAD))


async def test_no_more_is_read_for_a_client_that_takes_nothing(node: Node, engine: CountingEngine) -> None:
    await say(node, *texts(500))
    subscriber = Slow()
    joining = asyncio.create_task(node.join("chat", subscriber, since=START))
    # The first piece is for the read, the second one for writing it.
    await subscriber.takes(2)
    assert len(engine.pages) == 1
    assert len(subscriber.received) == replay.FIRST_READ
    assert node.stats()["subscriptions"] == 0
    joining.cancel()
    await asyncio.wait([joining])


async def test_publications_during_a_replay_are_delivered_in_order(node: Node) -> None:
    before, during, after = texts(200, "before"), texts(200, "during"), texts(3, "after")
    await say(node, *before)
    subscriber, there = Slow(), Subscriber("there")
    await node.join("chat", there)
    joining = asyncio.create_task(node.join("chat", subscriber, since=START))
    for text in during:
        await say(node, text)
        if subscriber.waits.is_set():
            subscriber.pieces.release()
    while not joining.done():
        subscriber.pieces.release()
        await asyncio.sleep(0)
    await say(node, *after)
    await subscriber.hears(*before, *during, *after)
    await there.hears(*during, *after)


async def test_clients_that_reconnect_together_share_reads(node: Node, engine: CountingEngine) -> None:
    said = texts(500)
    await say(node, *said)
    subscribers = [Subscriber(str(number)) for number in range(100)]
    await asyncio.gather(*(node.join("chat", subscriber, since=START) for subscriber in subscribers))
    assert all(subscriber.received == said for subscriber in subscribers)
    alone = 500 * (SIZE + FRAME_OVERHEAD) / replay.PIECE
    assert len(engine.pages) < 3 * alone


async def test_clients_that_missed_the_same_share_one_read_however_long_they_take(
    node: Node, engine: CountingEngine
) -> None:
    engine.pause = 2 * replay.FRESH
    positions = await say(node, *texts(15))
    subscribers = [Subscriber(str(number)) for number in range(100)]
    await asyncio.gather(*(node.join("chat", subscriber, since=positions[4]) for subscriber in subscribers))
    assert all(subscriber.received == texts(15)[5:] for subscriber in subscribers)
    assert len(engine.pages) == 1


async def test_a_page_that_is_out_of_the_recent_buffer_is_read_again(
    node: Node, engine: CountingEngine
) -> None:
    engine.pause = 2 * replay.FRESH
    said = [str(number) for number in range(1500)]
    await say(node, *said[:10])
    first, slow = Subscriber("first"), Slow("slow")
    slow.pieces.release()
    reading = asyncio.create_task(node.join("chat", first, since=START))
    joining = asyncio.create_task(node.join("chat", slow, since=START))
    await reading
    await asyncio.wait_for(slow.waits.wait(), 5)
    assert len(engine.pages) == 1
    # More than the recent buffer keeps.
    await say(node, *said[10:])
    for _ in range(1000):
        slow.pieces.release()
    await asyncio.wait_for(joining, 10)
    assert slow.received == said
    assert slow.breaks == []


async def test_a_channel_whose_only_client_takes_nothing_has_no_position(
    node: Node, engine: CountingEngine, clock: FakeClock
) -> None:
    class Gone(Subscriber):
        async def ready(self) -> int:
            return 0

    await say(node, "1")
    await node.join("chat", Gone(), since=START)
    await is_left(engine, clock)
    assert node.position("chat") == START


class LateEngine(FlakyEngine):
    """Delivers publications only when the test lets it."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.is_late = False
        self.under_way: list[Publication] = []

    def on_publication(self, publication: Publication) -> None:
        if self.is_late and publication.channel == "chat":
            self.under_way.append(publication)
        else:
            super().on_publication(publication)

    def arrive(self) -> None:
        self.is_late = False
        for publication in self.under_way:
            super().on_publication(publication)
        self.under_way.clear()


@pytest.fixture
async def late(clock: FakeClock) -> AsyncIterator[tuple[Node, LateEngine]]:
    """A node, and an engine that keeps only one publication."""
    engine = LateEngine(clock)
    async with running(engine, History(size=1), clock) as node:
        yield node, engine


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


async def test_a_loss_that_a_read_shows_breaks_subscriptions_after_the_grace(
    late: tuple[Node, LateEngine], clock: FakeClock
) -> None:
    node, engine = late
    there = Subscriber("there")
    await node.join("chat", there)
    (position, *_) = await say(node, "1", "2", "3")
    engine.loses = True
    await say(node, "4", "5", "6")
    with pytest.raises(Unrecoverable):
        await node.join("chat", Subscriber(), since=position)
    await clock.pass_time(GRACE + 2 * TICK, TICK)
    await eventually(lambda: bool(there.breaks))
    assert there.received == ["1", "2", "3"]


async def test_a_client_that_is_cancelled_in_the_middle_leaves_nothing_behind(
    node: Node, engine: CountingEngine, clock: FakeClock
) -> None:
    await say(node, *texts(500))
    subscriber = Slow()
    joining = asyncio.create_task(node.join("chat", subscriber, since=START))
    await subscriber.takes(3)
    joining.cancel()
    await asyncio.wait([joining])
    assert joining.cancelled()
    received = len(subscriber.received)
    await say(node, "more")
    await is_left(engine, clock)
    assert len(subscriber.received) == received
    assert node.stats()["channels"] == 0


async def test_a_client_that_leaves_in_the_middle_gets_nothing_more(node: Node) -> None:
    await say(node, *texts(500))
    subscriber = Slow()
    joining = asyncio.create_task(node.join("chat", subscriber, since=START))
    await subscriber.takes(3)
    received = len(subscriber.received)
    node.leave("chat", subscriber)
    subscriber.pieces.release()
    position = await joining
    assert position.offset == received < 500
    await say(node, "more")
    assert len(subscriber.received) == received
    assert node.stats()["subscriptions"] == 0


async def test_a_replay_continues_after_an_outage(node: Node, engine: CountingEngine) -> None:
    said = texts(500)
    await say(node, *said)
    subscriber = Slow()
    joining = asyncio.create_task(node.join("chat", subscriber, since=START))
    await subscriber.takes(2)
    engine.is_disconnected = True
    reads = engine.reads
    while engine.reads < reads + 2:
        subscriber.pieces.release()
        await asyncio.sleep(0)
    engine.is_disconnected = False
    while not joining.done():
        subscriber.pieces.release()
        await asyncio.sleep(0.001)
    assert (await joining).offset == 500
    assert subscriber.received == said


async def test_an_outage_before_the_first_piece_is_an_error(node: Node, engine: CountingEngine) -> None:
    await say(node, *texts(5))
    await node.join("chat", Subscriber("there"))
    engine.is_disconnected = True
    subscriber = Subscriber()
    with pytest.raises(EngineUnavailable):
        await node.join("chat", subscriber, since=START)
    assert subscriber.received == []


@pytest.mark.parametrize("piece", [0, 2])
async def test_history_that_is_removed_during_a_replay_breaks_the_subscription(
    node: Node, engine: CountingEngine, piece: int
) -> None:
    first = (await say(node, *texts(500)))[0]
    there, subscriber = Subscriber("there"), Slow()
    await node.join("chat", there)
    joining = asyncio.create_task(node.join("chat", subscriber, since=first))
    await subscriber.takes(piece)
    await engine.remove_history("chat")
    top = (await say(node, "new"))[0]
    await eventually(lambda: there.breaks == [top])
    while not joining.done():
        subscriber.pieces.release()
        await asyncio.sleep(0)
    if piece == 0:
        # Nothing has been written: the subscriber cannot resume at all.
        with pytest.raises(Unrecoverable):
            await joining
        assert subscriber.received == []
        assert subscriber.breaks == []
    else:
        assert await joining == top
        assert subscriber.breaks == [top]


async def test_a_client_that_asks_for_more_than_is_kept_gets_all_of_it(node: Node) -> None:
    await say(node, *texts(2010))
    subscriber = Subscriber()
    await node.join("chat", subscriber, history=5000)
    assert subscriber.received == texts(2010)[10:]


async def test_a_channel_that_was_left_and_joined_again_has_a_new_replay(
    node: Node, engine: CountingEngine, clock: FakeClock
) -> None:
    """Also while the exception of an earlier subscription is referred to."""
    await say(node, *texts(5))
    await node.join("chat", Subscriber("there"))
    engine.is_disconnected = True
    with pytest.raises(EngineUnavailable) as kept:
        await node.join("chat", Subscriber(), since=START)
    engine.is_disconnected = False
    node.leave("chat", Subscriber("there"))
    await is_left(engine, clock)
    subscriber = Subscriber()
    await node.join("chat", subscriber, since=START)
    await say(node, "new")
    await subscriber.hears(*texts(5), "new")
    assert kept.value


async def test_a_subscription_with_envelopes_waits_for_room(node: Node) -> None:
    subscriber = Slow()
    joining = asyncio.create_task(node.join("chat", subscriber, form=ENVELOPE))
    await subscriber.takes(0)
    assert subscriber.received == []
    subscriber.pieces.release()
    await joining
    assert len(subscriber.received) == 1


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


async def test_memory_is_bounded_for_clients_that_reconnect_and_do_not_read(server: Server) -> None:
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
    # No publication is lost by that: a client that reads gets all of them in order, and then new ones.
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


async def test_a_client_that_resumes_is_notified_first(server: Server) -> None:
    async with http_client() as http:
        since = (await http.post(f"{server.http}/fill", params={"count": 3, "size": 1})).json()
    async with connect(f"{server.ws}/chat?since={since}") as client:
        opening = {"type": "subscribed", "channel": "chat", "id": since, "recovered": True}
        assert await receive_json(client) == opening
        for _ in range(3):
            assert (await receive_json(client))["type"] == "publication"
