"""A node: several of them on one engine, and what one must do for its event loop."""

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
from hubbub.node import subscriptions
from hubbub.node.node import YIELD_COUNT, Node
from hubbub.testing.fake_engine import FakeEngine, FakeServer
from tests.clients import DEADLINE
from tests.subscriber import Subscriber

HISTORY = History(size=50, ttl=60)


class Stuck(Subscriber):
    """Cannot be written to at all."""

    def write(self, batch: Batch) -> int:
        return 1

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise RuntimeError("no way out")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def nodes(server: FakeServer) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        nodes = [Node(FakeEngine(server), lambda name: ChannelDeclaration(name, HISTORY)) for _ in range(2)]
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
async def test_who_publishes_without_end_gives_way_to_others(
    engine: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where there is nobody to deliver to."""
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
        await say(node, *map(str, range(4 * YIELD_COUNT)), channel="nobody is here")
        assert turns >= 4
    finally:
        other.cancel()
        await node.stop(1012, "", 1)


async def test_a_member_that_cannot_be_written_to_keeps_no_other_channel_from_its_publications(
    nodes: list[Node],
) -> None:
    node = nodes[0]
    stuck, member = Stuck("stuck"), Subscriber()
    await node.join("a", stuck)
    await node.join("b", member)
    for text in ("1", "2"):
        # In one turn of the loop.
        await asyncio.gather(say(node, text, channel="a"), say(node, text, channel="b"))
    await until(lambda: member.received == ["1", "2"])
    assert stuck.breaks


# Removing a history


async def test_who_comes_back_cannot_resume_into_what_was_removed_on_any_node(nodes: list[Node]) -> None:
    here, there = Subscriber(), Subscriber()
    await nodes[0].join("chat", here)
    await nodes[1].join("chat", there)
    first, *_ = await say(nodes[0], "1", "2", "3")
    await until(lambda: here.received == there.received == ["1", "2", "3"])
    await nodes[0].remove_history("chat")
    # At once where it was asked for.
    late = Subscriber("late")
    with pytest.raises(Unrecoverable):
        await nodes[0].join("chat", late, since=first)
    # Nothing else is published, which would tell the others.
    await until(lambda: bool(there.breaks))
    with pytest.raises(Unrecoverable):
        await nodes[1].join("chat", late, since=first)
    assert late.received == []
    assert here.breaks == there.breaks == [nodes[1].position("chat")]
    await say(nodes[1], "4")
    await until(lambda: here.received[-1:] == there.received[-1:] == ["4"])


async def test_removing_a_history_reaches_every_process(engine_url: str, namespace: str) -> None:
    """On the real engines."""
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


async def test_a_removal_whose_answer_is_lost_is_noticed(
    server: FakeServer, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    member = Subscriber()
    await nodes[0].join("chat", member)
    first, *_ = await say(nodes[0], "1", "2")
    await until(lambda: member.received == ["1", "2"])

    async def remove(channel: str) -> None:
        await server.memory.remove_history(channel)
        raise EngineUnavailable("no answer")

    monkeypatch.setattr(server.engines[0], "remove_history", remove)
    with pytest.raises(EngineUnavailable):
        await nodes[0].remove_history("chat")
    with pytest.raises(Unrecoverable):
        await nodes[0].join("chat", Subscriber("late"), since=first)


async def test_a_node_that_was_away_when_a_history_was_removed_finds_out(
    server: FakeServer, nodes: list[Node]
) -> None:
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


async def test_what_is_being_read_when_a_history_is_removed_is_not_handed_over(
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


async def test_a_history_that_is_kept_for_a_moment_is_not_replayed_later(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = History(size=2, ttl=0.05)
    node = nodes[0]
    monkeypatch.setattr(node, "_channel_of", lambda name: ChannelDeclaration(name, short))
    member = Subscriber()
    await node.join("chat", member)
    first, *_ = await say(node, "1", "2", "3")
    await until(lambda: member.received == ["1", "2", "3"])
    await asyncio.sleep(2 * short.ttl)
    with pytest.raises(Unrecoverable):
        await node.join("chat", Subscriber("late"), since=first)
    with pytest.raises(Unrecoverable):
        await node.join("chat", Subscriber("late"), since=START)


# Leaving channels


async def test_a_channel_under_repair_is_not_left(
    server: FakeServer, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repair may declare it again."""
    monkeypatch.setattr(subscriptions, "LINGER", 0.0)
    member = Subscriber()
    await nodes[0].join("chat", member)
    answer = asyncio.Event()
    history = server.engines[0].history

    async def slow(*options: object) -> HistoryPage:
        await answer.wait()
        return await history(*options)  # type: ignore[arg-type]

    monkeypatch.setattr(server.engines[0], "history", slow)
    await server.restart()
    await server.memory.publish(Publication("chat", b"1", "text", id="1"))
    nodes[0].leave("chat", member)
    nodes[0]._subscriptions.tick(nodes[0].loop.time())
    await asyncio.sleep(0)
    assert "chat" in server.engines[0].channels
    answer.set()

    def is_left() -> bool:
        nodes[0]._subscriptions.tick(nodes[0].loop.time() + 1)
        return "chat" not in server.engines[0].channels

    await until(is_left)
    assert nodes[0].stats()["channels"] == 0
