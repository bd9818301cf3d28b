"""Presence events on several nodes, with a server that has outages, loses its data, and outlives nodes.

The server and each node have a clock of their own. The clock of a crashed or suspended process stands still.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from sys import maxsize
from typing import Any

import pytest

from hubbub import EngineUnavailable, Presence, PresenceEntry
from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame
from hubbub.core.publication import START, Position, Publication
from hubbub.core.subscriber import Start
from hubbub.engines.base import PresenceChange
from hubbub.node.node import TICK, Node
from hubbub.node.presence import RENEWALS, SETTLE_TIME, encode_entry, presence_channel
from hubbub.node.presence_events import SYNC_INTERVAL, PresenceEvents
from hubbub.node.subscriptions import LINGER
from hubbub.testing.fake_engine import FakeServer
from hubbub.types import JoinLeave
from tests.clients import DEADLINE
from tests.clock import TURNS, FakeClock
from tests.nodes import running
from tests.subscriber import Subscriber

#: Seconds after which the connections of a crashed process are removed.
TTL = 30.0

INFO = {"colour": "blue"}


class Watcher:
    """A subscriber that gets presence events, and checks that they add up."""

    recovers_in_pieces = True

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.events: list[dict[str, Any]] = []
        #: The entries that are present, by connection.
        self.present: dict[str, Any] = {}
        #: How many events of each kind there were of each connection.
        self.counts: Counter[str] = Counter()

    def write(self, batch: Batch) -> int:
        for message in batch.messages:
            event = json.loads(message.data)
            self.events.append(event)
            for entry in event["entries"]:
                connection = entry["connection"]
                self.counts[event["type"] + " " + connection] += 1
                if event["type"] == "leave":
                    assert self.present.pop(connection) == entry
                else:
                    assert connection not in self.present
                    self.present[connection] = entry
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError

    async def ready(self) -> int:
        return maxsize

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        assert not missed

    def broken(self, channel: str, position: Position) -> bool:
        raise AssertionError


class Cluster:
    """A server and its nodes."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.server = FakeServer(self.clock)
        self.clocks: dict[Node, FakeClock] = {}
        self._stopped: dict[Node, FakeClock] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def start_node(self) -> Node:
        clock = FakeClock(now=self.clock())
        node = await self._stack.enter_async_context(running(self.server, TTL, clock))
        self.clocks[node] = clock
        return node

    def suspend(self, node: Node) -> None:
        """Stop the clock of ``node``, as SIGSTOP would."""
        self._stopped[node] = self.clocks.pop(node)

    def resume(self, node: Node) -> None:
        """Let its clock continue, at the time that it is now."""
        clock = self.clocks[node] = self._stopped.pop(node)
        clock.advance(self.clock() - clock())

    async def pass_time(self, seconds: float) -> None:
        step = TTL / RENEWALS / 3
        for _ in range(round(seconds / step)):
            for clock in (self.clock, *self.clocks.values()):
                clock.advance(step)
            for _ in range(TURNS):
                await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


@pytest.fixture
async def nodes(cluster: Cluster) -> tuple[Node, Node]:
    return await cluster.start_node(), await cluster.start_node()


async def join(node: Node, connection: str, user: str | None = None) -> Subscriber:
    subscriber = Subscriber(connection)
    entry = encode_entry(PresenceEntry(connection, user, INFO))
    await node.join("room", subscriber, entry=entry)
    return subscriber


async def watch(node: Node, join_leave: JoinLeave = "connections") -> Watcher:
    watcher = Watcher(f"watcher {id(node)} {join_leave}")
    await node.join("room", watcher, join_leave=join_leave)
    return watcher


# Entries


async def test_all_nodes_have_all_entries(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    await join(one, "a", "ann")
    await join(two, "b", "ann")
    await join(two, "c")
    for node in nodes:
        presence = await node.presence("room")
        assert [entry.connection for entry in presence] == ["c", "a", "b"]
        assert presence.entries[1] == PresenceEntry("a", "ann", INFO)
        assert {
            user: [entry.connection for entry in entries] for user, entries in presence.users.items()
        } == {"ann": ["a", "b"]}
    assert await one.presence("another room") == Presence([])


async def test_entries_of_another_program_are_left_out(
    nodes: tuple[Node, Node], cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    node, _ = nodes
    await join(node, "a", "ann")
    strange = PresenceChange("room", "x", b"\xffnot JSON\n")
    await cluster.server.memory.update_presence("another lease", TTL, [strange], begin=True)
    watcher = await watch(node)
    assert list(watcher.present) == ["a"]
    assert [entry.connection for entry in await node.presence("room")] == ["a"]
    assert "Ignored a presence entry in 'room'" in caplog.text
    assert "\xff" not in caplog.text


# Joining


async def test_a_subscriber_that_cannot_join_is_not_present(
    nodes: tuple[Node, Node], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = nodes
    watcher = await watch(two)
    engine = cluster.server.engines[0]

    async def refuse(channel: str, history: object = None) -> object:
        assert [entry.connection for entry in await two.presence("room")] == ["a"]
        raise EngineUnavailable("The test refuses.")

    monkeypatch.setattr(engine, "subscribe", refuse)
    with pytest.raises(EngineUnavailable):
        await join(one, "a")
    await until(lambda: watcher.counts == {"join a": 1, "leave a": 1})
    assert await one.presence("room") == Presence([])


async def test_a_subscriber_whose_task_is_cancelled_is_not_present(
    nodes: tuple[Node, Node], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = nodes
    watcher = await watch(two)
    entered = asyncio.Event()

    async def never(channel: str, history: object = None) -> object:
        entered.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(cluster.server.engines[0], "subscribe", never)
    joining = asyncio.create_task(join(one, "a"))
    await entered.wait()
    joining.cancel()
    await asyncio.wait([joining])
    assert joining.cancelled()
    await until(lambda: watcher.counts == {"join a": 1, "leave a": 1})


async def test_a_subscriber_that_leaves_while_it_is_entered_is_not_present(
    nodes: tuple[Node, Node], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _ = nodes
    watcher = await watch(node)
    update, gate, asked = cluster.server.engines[0].update_presence, asyncio.Event(), asyncio.Event()

    async def slow(*options: Any, **more: Any) -> bool:
        asked.set()
        await gate.wait()
        return await update(*options, **more)

    monkeypatch.setattr(cluster.server.engines[0], "update_presence", slow)
    first = asyncio.create_task(join(node, "first"))
    await asked.wait()
    undone = asyncio.create_task(join(node, "undone"))
    await asyncio.sleep(0)
    node.leave("room", Subscriber("undone"))
    gate.set()
    await first
    await undone
    await join(node, "last")
    await until(lambda: "last" in watcher.present)
    assert list(watcher.present) == ["first", "last"]


# Events


async def test_a_subscriber_gets_the_entries_and_then_joins_and_leaves(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    subscriber = await join(one, "a", "ann")
    watcher = await watch(two)
    ann = {"connection": "a", "user": "ann", "info": INFO}
    assert watcher.events == [{"type": "presence", "channel": "room", "entries": [ann]}]
    await join(one, "b")
    await until(lambda: "b" in watcher.present)
    one.leave("room", subscriber)
    await until(lambda: "a" not in watcher.present)
    anonymous = {"connection": "b", "user": None, "info": INFO}
    assert watcher.events[1:] == [
        {"type": "join", "channel": "room", "entries": [anonymous]},
        {"type": "leave", "channel": "room", "entries": [ann]},
    ]


async def test_a_user_joins_with_its_first_connection_and_leaves_with_its_last(
    nodes: tuple[Node, Node],
) -> None:
    one, two = nodes
    first = await join(one, "a", "ann")
    users, connections = await watch(two, "users"), await watch(two)
    second = await join(two, "b", "ann")
    await join(one, "c", "bob")
    await until(lambda: len(connections.present) == 3)
    assert list(users.present) == ["a", "c"]
    one.leave("room", first)
    two.leave("room", second)
    await until(lambda: list(connections.present) == ["c"])
    assert list(users.present) == ["c"]
    assert users.counts == {"presence a": 1, "join c": 1, "leave a": 1}


async def test_a_connection_that_joins_as_another_user_has_left_as_the_one_before(
    nodes: tuple[Node, Node],
) -> None:
    """As a connection does whose user changes between two subscriptions."""
    one, two = nodes
    watchers = [await watch(node, join_leave) for node in nodes for join_leave in ("connections", "users")]
    subscriber = await join(one, "a", "ann")
    await until(lambda: all("a" in watcher.present for watcher in watchers))
    # In one turn of the loop, so that no diff has the time in between.
    one.leave("room", subscriber)
    subscriber = await join(one, "a", "bob")
    await until(lambda: all(watcher.counts["join a"] == 2 for watcher in watchers))
    assert all(watcher.present["a"]["user"] == "bob" for watcher in watchers)
    one.leave("room", subscriber)
    await until(lambda: not any(watcher.present for watcher in watchers))
    assert all(watcher.counts["leave a"] == 2 for watcher in watchers)
    assert not (await two.presence("room")).entries


async def test_many_connections_join_at_once(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    watcher = await watch(two)
    await asyncio.gather(*(join(one, str(number)) for number in range(3000)))
    await until(lambda: len(watcher.present) == 3000)
    assert len(watcher.events) < 100
    assert len(await two.presence("room")) == 3000


async def test_presence_events_without_subscribers_are_closed(
    nodes: tuple[Node, Node], cluster: Cluster
) -> None:
    watcher = await watch(nodes[0])
    channels = cluster.server.engines[0].channels
    assert presence_channel("room") in channels
    nodes[0].leave("room", watcher)
    await cluster.pass_time(LINGER + 3 * TICK)
    assert presence_channel("room") not in channels
    await join(nodes[1], "a")
    again = await watch(nodes[0])
    assert list(again.present) == ["a"]


# Crashes and stops


async def test_the_connections_of_a_crashed_process_leave_once(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    watchers = [await watch(node) for node in nodes]
    crashed = await cluster.start_node()
    for number in range(50):
        await join(crashed, str(number), "ann")
    await join(nodes[0], "stays")
    await until(lambda: all(len(watcher.present) == 51 for watcher in watchers))
    cluster.suspend(crashed)
    await cluster.pass_time(TTL)
    await until(lambda: all(list(watcher.present) == ["stays"] for watcher in watchers))
    for watcher in watchers:
        assert set(watcher.counts.values()) == {1}
        assert sum(event.startswith("leave") for event in watcher.counts) == 50
    assert [entry.connection for entry in await nodes[1].presence("room")] == ["stays"]


async def test_connections_stay_as_long_as_their_process_runs(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    watcher = await watch(nodes[0])
    await join(nodes[1], "a")
    await cluster.pass_time(5 * TTL)
    assert watcher.counts == {"join a": 1}
    assert len(await nodes[0].presence("room")) == 1


async def test_a_node_that_stops_removes_its_connections(cluster: Cluster, nodes: tuple[Node, Node]) -> None:
    watcher = await watch(nodes[0])
    await cluster.pass_time(SETTLE_TIME)
    async with running(cluster.server, TTL, FakeClock()) as node:
        subscriber = await join(node, "left")
        await join(node, "still there")
        await until(lambda: len(watcher.present) == 2)
        node.leave("room", subscriber)
    # At the next check; its lease is not waited for.
    await cluster.pass_time(2 * TTL / RENEWALS)
    await until(lambda: not watcher.present)
    assert await nodes[1].presence("room") == Presence([])


async def test_a_process_that_was_suspended_enters_its_connections_again(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    watcher = await watch(nodes[0])
    await join(nodes[1], "a")
    await until(lambda: list(watcher.present) == ["a"])
    cluster.suspend(nodes[1])
    await cluster.pass_time(TTL)
    await until(lambda: not watcher.present)
    cluster.resume(nodes[1])
    await until(lambda: list(watcher.present) == ["a"])
    assert watcher.counts == {"join a": 2, "leave a": 1}


# Outages


@pytest.mark.parametrize("keeps_data", [True, False])
async def test_no_connection_leaves_because_of_an_outage(
    cluster: Cluster, nodes: tuple[Node, Node], keeps_data: bool
) -> None:
    server = cluster.server
    watchers = [await watch(node) for node in nodes]
    await join(nodes[0], "a")
    await join(nodes[1], "b")
    await until(lambda: all(len(watcher.present) == 2 for watcher in watchers))
    server.disconnect()
    await cluster.pass_time(TTL * 0.3)
    if not keeps_data:
        await server.restart()
    # The nodes reconnect one after the other. The first one must not remove the connections of the second.
    server.engines[0].reconnect()
    await cluster.pass_time(SETTLE_TIME * 0.8)
    server.engines[1].reconnect()

    async def entered() -> set[str]:
        return set(await server.memory.presence("room"))

    async with asyncio.timeout(DEADLINE):
        while await entered() != {"a", "b"}:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await join(nodes[0], "c")
    await until(lambda: all("c" in watcher.present for watcher in watchers))
    await cluster.pass_time(TTL * 2)
    assert await entered() == {"a", "b", "c"}
    assert [watcher.counts for watcher in watchers] == [
        {"join a": 1, "join b": 1, "join c": 1},
        {"join a": 1, "join b": 1, "join c": 1},
    ]


async def test_a_connection_that_leaves_during_an_outage_has_left_after_it(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    watcher = await watch(nodes[1])
    subscriber = await join(nodes[0], "a")
    await join(nodes[0], "b")
    await until(lambda: len(watcher.present) == 2)
    cluster.server.disconnect()
    nodes[0].leave("room", subscriber)
    # The node is subscribed to the channel already: joining needs no engine.
    await join(nodes[0], "c")
    cluster.server.reconnect()
    await until(lambda: list(watcher.present) == ["b", "c"])
    assert watcher.counts["leave a"] == 1


async def test_diffs_that_are_lost_in_an_outage_are_made_up_for(
    cluster: Cluster, nodes: tuple[Node, Node]
) -> None:
    engine = cluster.server.engines[0]
    watcher = await watch(nodes[0])
    engine.is_disconnected = True
    await join(nodes[1], "a")
    engine.is_disconnected = False
    assert not watcher.present
    engine.reconnect()
    await until(lambda: list(watcher.present) == ["a"])


async def test_a_diff_that_is_lost_is_made_up_for_by_the_regular_sync(
    cluster: Cluster, nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = nodes
    watcher = await watch(one)
    publish = cluster.server.engines[1].publish

    async def lose(publication: Publication, *options: Any) -> Position:
        return (
            START if publication.channel == presence_channel("room") else await publish(publication, *options)
        )

    monkeypatch.setattr(cluster.server.engines[1], "publish", lose)
    await join(two, "a")
    assert not watcher.present
    await cluster.pass_time(SYNC_INTERVAL + 2 * TICK)
    await until(lambda: list(watcher.present) == ["a"])


class SlowPresence:
    """Reads presence when the test says so."""

    def __init__(self) -> None:
        self.reads: list[asyncio.Future[dict[str, bytes]]] = []

    async def presence(self, channel: str) -> dict[str, bytes]:
        self.reads.append(asyncio.get_running_loop().create_future())
        return await self.reads[-1]


class NoSubscriptions:
    def schedule(self, flush: Callable[[], None]) -> None:
        flush()

    def leave(self, channel: str, subscriber: object) -> None: ...


@pytest.mark.parametrize("is_closed", [False, True])
async def test_a_sync_is_not_forgotten_where_another_one_ends(is_closed: bool) -> None:
    loop = asyncio.get_running_loop()
    engine: Any = SlowPresence()
    subscriptions: Any = NoSubscriptions()
    events = PresenceEvents("room", engine, subscriptions, lambda: True, loop)
    events.sync()
    await asyncio.sleep(0)
    # The task ends in the next turn of the loop, then the second sync is asked for, and only the turn after
    # that calls what is to be called at the end of the task.
    engine.reads[0].set_result({})
    loop.call_soon(events.sync)
    if is_closed:
        loop.call_soon(events.close)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(engine.reads) == (1 if is_closed else 2)
    events.close()
    await asyncio.sleep(0)
