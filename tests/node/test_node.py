"""A node: publishing on its event loop, removing a history, and commands to other nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from hubbub import EngineUnavailable, History, Position, Publication, Unrecoverable
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.frames import Batch
from hubbub.core.history import HistoryPage
from hubbub.core.publication import START
from hubbub.engines import engine_for
from hubbub.node.node import TICK, YIELD_COUNT, Node
from hubbub.node.subscriptions import LINGER
from hubbub.testing.fake_engine import FakeEngine, FakeServer
from tests.clients import DEADLINE
from tests.clock import FakeClock
from tests.subscriber import Subscriber

HISTORY = History(size=50, ttl=60)


class Stuck(Subscriber):
    """A subscriber that cannot be written to."""

    def write(self, batch: Batch) -> int:
        return 1

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise RuntimeError("The test refuses.")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> FakeServer:
    return FakeServer(clock)


@pytest.fixture
async def nodes(server: FakeServer, clock: FakeClock) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        nodes = [
            Node(FakeEngine(server), lambda name: ChannelDeclaration(name, HISTORY), clock=clock)
            for _ in range(2)
        ]
        for node in nodes:
            await node.start()
            stack.push_async_callback(node.stop, 1012, "", 1)
        yield nodes


async def say(node: Node, *texts: str, channel: str = "chat") -> list[Position]:
    return [
        await node.publish(Publication(channel, text.encode(), "text", id=f"id {text}")) for text in texts
    ]


# The event loop


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_a_task_that_publishes_without_end_leaves_the_loop_to_other_tasks(
    engine: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also in a channel without subscribers."""
    url = "memory://" if engine == "memory" else f"sqlite:///{tmp_path_factory.mktemp('hub') / 'hub.db'}"
    node = Node(engine_for(url))
    await node.start()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    try:
        await say(node, *map(str, range(4 * YIELD_COUNT)), channel="empty")
        assert turns >= 4
    finally:
        other.cancel()
        await node.stop(1012, "", 1)


async def test_a_subscriber_that_cannot_be_written_to_delays_no_other_channel(
    nodes: list[Node],
) -> None:
    node = nodes[0]
    stuck, subscriber = Stuck("stuck"), Subscriber()
    await node.join("a", stuck)
    await node.join("b", subscriber)
    for text in ("1", "2"):
        # Both channels are flushed at the end of the same turn of the loop.
        await asyncio.gather(say(node, text, channel="a"), say(node, text, channel="b"))
    await until(lambda: subscriber.received == ["1", "2"])
    assert stuck.breaks


# Removing a history


async def test_a_client_cannot_resume_from_a_removed_history_on_any_node(nodes: list[Node]) -> None:
    here, there = Subscriber(), Subscriber()
    await nodes[0].join("chat", here)
    await nodes[1].join("chat", there)
    first, *_ = await say(nodes[0], "1", "2", "3")
    await until(lambda: here.received == there.received == ["1", "2", "3"])
    await nodes[0].remove_history("chat")
    # At once on the node that has removed it.
    late = Subscriber("late")
    with pytest.raises(Unrecoverable):
        await nodes[0].join("chat", late, since=first)
    # No publication follows, by which the other node would notice.
    await until(lambda: bool(there.breaks))
    with pytest.raises(Unrecoverable):
        await nodes[1].join("chat", late, since=first)
    assert late.received == []
    assert here.breaks == there.breaks == [nodes[1].position("chat")]
    await say(nodes[1], "4")
    await until(lambda: here.received[-1:] == there.received[-1:] == ["4"])


async def test_removing_a_history_reaches_every_process(engine_url: str, namespace: str) -> None:
    async with AsyncExitStack() as stack:
        nodes = []
        for _ in range(2):
            node = Node(engine_for(engine_url, namespace), lambda name: ChannelDeclaration(name, HISTORY))
            await node.start()
            stack.push_async_callback(node.stop, 1012, "", 1)
            nodes.append(node)
        here, there = Subscriber(), Subscriber()
        await nodes[0].join("chat", here)
        await nodes[1].join("chat", there)
        first, *_ = await say(nodes[0], "1", "2")
        await until(lambda: here.received == there.received == ["1", "2"])
        await nodes[0].remove_history("chat")
        with pytest.raises(Unrecoverable):
            await nodes[0].join("chat", Subscriber("late"), since=first)
        await until(lambda: bool(there.breaks))
        with pytest.raises(Unrecoverable):
            await nodes[1].join("chat", Subscriber("late"), since=first)


async def test_a_removal_whose_answer_is_lost_counts(
    server: FakeServer, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriber = Subscriber()
    await nodes[0].join("chat", subscriber)
    first, *_ = await say(nodes[0], "1", "2")
    await until(lambda: subscriber.received == ["1", "2"])

    async def remove(channel: str) -> None:
        await server.memory.remove_history(channel)
        raise EngineUnavailable("no answer")

    monkeypatch.setattr(server.engines[0], "remove_history", remove)
    with pytest.raises(EngineUnavailable):
        await nodes[0].remove_history("chat")
    with pytest.raises(Unrecoverable):
        await nodes[0].join("chat", Subscriber("late"), since=first)


async def test_a_node_notices_a_removal_during_its_outage(server: FakeServer, nodes: list[Node]) -> None:
    there = Subscriber()
    await nodes[1].join("chat", there)
    first, *_ = await say(nodes[0], "1", "2")
    await until(lambda: there.received == ["1", "2"])
    server.engines[1].disconnect()
    await nodes[0].remove_history("chat")
    server.engines[1].reconnect()
    await until(lambda: bool(there.breaks))
    with pytest.raises(Unrecoverable):
        await nodes[1].join("chat", Subscriber("late"), since=first)


async def test_a_page_that_is_being_read_when_its_history_is_removed_is_not_delivered(
    server: FakeServer, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = await say(nodes[0], "1", "2")
    there = Subscriber()
    await nodes[1].join("chat", there)
    slow, answer = asyncio.Event(), asyncio.Event()
    history = server.engines[1].history

    async def slow_once(channel: str, since: Position | None = None, *options: object) -> HistoryPage:
        page = await history(channel, since, *options)  # type: ignore[arg-type]
        if since == first and not slow.is_set():
            slow.set()
            await answer.wait()
        return page

    monkeypatch.setattr(server.engines[1], "history", slow_once)
    late = Subscriber("late")
    coming = asyncio.create_task(nodes[1].join("chat", late, since=first))
    await slow.wait()
    await nodes[0].remove_history("chat")
    await until(lambda: bool(there.breaks))
    answer.set()
    with pytest.raises(Unrecoverable):
        await coming
    assert late.received == []
    assert len(there.breaks) == 1


async def test_a_subscriber_cannot_resume_from_a_history_that_has_expired(
    nodes: list[Node], clock: FakeClock
) -> None:
    node = nodes[0]
    subscriber = Subscriber()
    await node.join("chat", subscriber)
    first, *_ = await say(node, "1", "2", "3")
    await until(lambda: subscriber.received == ["1", "2", "3"])
    clock.advance(HISTORY.ttl / 2)
    late = Subscriber("late")
    await node.join("chat", late, since=first)
    assert late.received == ["2", "3"]
    clock.advance(HISTORY.ttl)
    with pytest.raises(Unrecoverable):
        await node.join("chat", Subscriber("too late"), since=first)
    with pytest.raises(Unrecoverable):
        await node.join("chat", Subscriber("too late"), since=START)


# Leaving channels


async def test_a_channel_under_repair_is_not_left(
    server: FakeServer, nodes: list[Node], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repair may declare it again."""
    subscriber = Subscriber()
    await nodes[0].join("chat", subscriber)
    answer = asyncio.Event()
    history = server.engines[0].history

    async def slow(*options: object) -> HistoryPage:
        await answer.wait()
        return await history(*options)  # type: ignore[arg-type]

    monkeypatch.setattr(server.engines[0], "history", slow)
    await server.restart()
    await server.memory.publish(Publication("chat", b"1", "text", id="1"))
    nodes[0].leave("chat", subscriber)
    await clock.pass_time(3 * LINGER, TICK)
    assert "chat" in server.engines[0].channels
    answer.set()
    await clock.pass_time(3 * LINGER, TICK)
    assert "chat" not in server.engines[0].channels
    assert nodes[0].stats()["channels"] == 0
