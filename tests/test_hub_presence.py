"""Who is in a channel: several nodes, on an engine that goes away, forgets, and outlives its nodes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from sys import maxsize
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient

from hubbub import History, Hub, InvalidChannel, InvalidData, Presence, PresenceEntry
from hubbub import node as node_module
from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame
from hubbub.core.publication import START, Position, Publication
from hubbub.core.subscriber import Start
from hubbub.engines.base import PresenceChange
from hubbub.node.node import Node
from hubbub.node.presence import companion, encode_member
from hubbub.protocols.plain import PLAIN
from hubbub.types import JoinLeave
from tests.clients import DEADLINE
from tests.shared_engine import Server, running

#: Seconds after which those of a killed process have left. A busy machine may stop this one for a while.
TTL = 1.5


class Watcher:
    """A client that is told who comes and who leaves, and checks that it adds up."""

    recovers_in_pieces = True

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.events: list[dict[str, Any]] = []
        self.here: dict[str, Any] = {}
        self.told: Counter[str] = Counter()

    def write(self, batch: Batch) -> int:
        for message in batch.messages:
            event = json.loads(message.data)
            self.events.append(event)
            for member in event["entries"]:
                connection = member["connection"]
                self.told[event["type"] + " " + connection] += 1
                if event["type"] == "leave":
                    assert self.here.pop(connection) == member
                else:
                    assert connection not in self.here
                    self.here[connection] = member
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError

    async def ready(self) -> int:
        return maxsize

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        assert not missed

    def broken(self, channel: str, position: Position) -> bool:
        raise AssertionError


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def nodes(server: Server) -> AsyncIterator[tuple[Node, Node]]:
    async with running(server, TTL) as one, running(server, TTL) as two:
        yield one, two


async def come(node: Node, connection: str, user: str | None = None) -> None:
    member = PresenceEntry(connection, user, {"colour": "blue"})
    await node.enter("room", connection, encode_member(member))


async def watching(node: Node, what: JoinLeave = "connections") -> Watcher:
    watcher = Watcher(f"watcher {id(node)} {what}")
    await node.open_watch("room", watcher)
    node.watch("room", watcher, what, PLAIN)
    return watcher


def kill(node: Node) -> None:
    """As SIGKILL would: nothing is said to anybody."""
    task = node._attendance._task
    assert task is not None
    task.cancel()
    node._attendance._task = None


async def test_every_node_knows_who_is_there(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    await come(one, "a", "ann")
    await come(two, "b", "ann")
    await come(two, "c")
    for node in nodes:
        presence = await node.presence("room")
        assert [each.connection for each in presence] == ["c", "a", "b"]
        assert presence.entries[1] == PresenceEntry("a", "ann", {"colour": "blue"})
        assert {user: [each.connection for each in members] for user, members in presence.users.items()} == {
            "ann": ["a", "b"]
        }
    assert await one.presence("another room") == Presence([])


async def test_what_something_else_has_entered_is_left_out(
    nodes: tuple[Node, Node], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    node, _ = nodes
    await come(node, "a", "ann")
    strange = PresenceChange("room", "x", b"\xffnot JSON\n")
    await server.memory.update_presence("somebody's lease", TTL, [strange], begin=True)
    watcher = await watching(node)
    assert list(watcher.here) == ["a"]
    assert [each.connection for each in await node.presence("room")] == ["a"]
    assert "Ignored somebody in 'room'" in caplog.text
    assert "\xff" not in caplog.text


async def test_who_watches_is_told_who_is_there_and_then_who_comes_and_leaves(
    nodes: tuple[Node, Node],
) -> None:
    one, two = nodes
    await come(one, "a", "ann")
    watcher = await watching(two)
    info = {"colour": "blue"}
    ann = {"connection": "a", "user": "ann", "info": info}
    assert watcher.events == [{"type": "presence", "channel": "room", "entries": [ann]}]
    await come(one, "b")
    await until(lambda: "b" in watcher.here)
    one._attendance.leave("room", "a")
    await until(lambda: "a" not in watcher.here)
    bob = {"connection": "b", "user": None, "info": info}
    assert watcher.events[1:] == [
        {"type": "join", "channel": "room", "entries": [bob]},
        {"type": "leave", "channel": "room", "entries": [ann]},
    ]


async def test_a_user_comes_with_the_first_connection_and_leaves_with_the_last(
    nodes: tuple[Node, Node],
) -> None:
    one, two = nodes
    await come(one, "a", "ann")
    watcher, every = await watching(two, "users"), await watching(two)
    await come(two, "b", "ann")
    await come(one, "c", "bob")
    await until(lambda: len(every.here) == 3)
    assert list(watcher.here) == ["a", "c"]
    one._attendance.leave("room", "a")
    two._attendance.leave("room", "b")
    await until(lambda: list(every.here) == ["c"])
    assert list(watcher.here) == ["c"]
    assert watcher.told == {"presence a": 1, "join c": 1, "leave a": 1}


async def test_those_of_a_killed_process_leave_once(server: Server, nodes: tuple[Node, Node]) -> None:
    watchers = [await watching(node) for node in nodes]
    async with AsyncExitStack() as stack:
        doomed = await stack.enter_async_context(running(server, TTL))
        for number in range(50):
            await come(doomed, str(number), "ann")
        await come(nodes[0], "stays")
        await until(lambda: all(len(watcher.here) == 51 for watcher in watchers))
        kill(doomed)
        await until(lambda: all(list(watcher.here) == ["stays"] for watcher in watchers))
    for watcher in watchers:
        assert set(watcher.told.values()) == {1}
        assert sum(what.startswith("leave") for what in watcher.told) == 50
    assert [each.connection for each in await nodes[1].presence("room")] == ["stays"]


async def test_a_node_that_stops_takes_leave(server: Server, nodes: tuple[Node, Node]) -> None:
    watcher = await watching(nodes[0])
    async with running(server, TTL) as node:
        await come(node, "a")
        await until(lambda: list(watcher.here) == ["a"])
        node._attendance.leave("room", "a")
    await until(lambda: not watcher.here)
    await until(lambda: not server.memory._leases)


@pytest.mark.parametrize("keeps_data", [True, False])
async def test_an_outage_is_nobodys_leaving(
    server: Server, nodes: tuple[Node, Node], keeps_data: bool
) -> None:
    watchers = [await watching(node) for node in nodes]
    await come(nodes[0], "a")
    await come(nodes[1], "b")
    await until(lambda: all(len(watcher.here) == 2 for watcher in watchers))
    server.go()
    await asyncio.sleep(TTL * 0.3)
    if not keeps_data:
        server.restart()
    # They come back one after the other, and the first may not judge the second.
    server.nodes[0].come_back()
    await asyncio.sleep(TTL * 0.4)
    server.nodes[1].come_back()

    def has_both() -> bool:
        return len(server.memory._presence.get("room", {})) == 2

    await until(has_both)
    await come(nodes[0], "c")
    await until(lambda: all("c" in watcher.here for watcher in watchers))
    await asyncio.sleep(TTL * 2)
    assert has_both() or len(await nodes[0].presence("room")) == 3
    assert [watcher.told for watcher in watchers] == [
        {"join a": 1, "join b": 1, "join c": 1},
        {"join a": 1, "join b": 1, "join c": 1},
    ]


async def test_who_leaves_during_an_outage_has_left_after_it(
    server: Server, nodes: tuple[Node, Node]
) -> None:
    watcher = await watching(nodes[1])
    await come(nodes[0], "a")
    await come(nodes[0], "b")
    await until(lambda: len(watcher.here) == 2)
    server.go()
    nodes[0]._attendance.leave("room", "a")
    entering = asyncio.ensure_future(come(nodes[0], "c"))
    await entering
    server.come_back()
    await until(lambda: list(watcher.here) == ["b", "c"])
    assert watcher.told["leave a"] == 1


async def test_a_node_that_was_taken_for_dead_comes_again(server: Server, nodes: tuple[Node, Node]) -> None:
    watcher = await watching(nodes[0])
    await come(nodes[1], "a")
    await until(lambda: list(watcher.here) == ["a"])
    # It is stopped, and goes on much later.
    kill(nodes[1])
    await until(lambda: not watcher.here)
    nodes[1]._attendance.start()
    await until(lambda: list(watcher.here) == ["a"])
    assert watcher.told == {"join a": 2, "leave a": 1}


async def test_lost_news_are_found_by_looking(server: Server, nodes: tuple[Node, Node]) -> None:
    watcher = await watching(nodes[0])
    server.nodes[0].is_away = True
    await come(nodes[1], "a")
    server.nodes[0].is_away = False
    assert not watcher.here
    server.nodes[0].come_back()
    await until(lambda: list(watcher.here) == ["a"])


async def test_who_comes_again_as_another_user_has_left_as_the_one_before(nodes: tuple[Node, Node]) -> None:
    """As a connection does whose user changes between two subscriptions."""
    one, two = nodes
    watchers = [await watching(node, what) for node in nodes for what in ("connections", "users")]
    await come(one, "a", "ann")
    await until(lambda: all("a" in watcher.here for watcher in watchers))
    # In one breath, so that nobody is told of the time in between.
    one._attendance.leave("room", "a")
    await come(one, "a", "bob")
    await until(lambda: all(watcher.told["join a"] == 2 for watcher in watchers))
    assert all(watcher.here["a"]["user"] == "bob" for watcher in watchers)
    one._attendance.leave("room", "a")
    await until(lambda: not any(watcher.here for watcher in watchers))
    assert all(watcher.told["leave a"] == 2 for watcher in watchers)
    assert not (await two.presence("room")).entries


async def test_a_subscription_that_is_undone_meanwhile_leaves_no_join_without_a_leave(
    server: Server, nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes[0]
    watcher = await watching(node)
    update, gate = server.nodes[0].update_presence, asyncio.Event()

    async def slow(*options: Any, **more: Any) -> bool:
        await gate.wait()
        return await update(*options, **more)

    monkeypatch.setattr(server.nodes[0], "update_presence", slow)
    first = asyncio.create_task(come(node, "first"))
    await asyncio.sleep(0.01)
    undone = asyncio.create_task(come(node, "undone"))
    await asyncio.sleep(0)
    node._attendance.leave("room", "undone")
    gate.set()
    await first
    await undone
    await come(node, "last")
    await until(lambda: "last" in watcher.here)
    assert list(watcher.here) == ["first", "last"]


async def test_lost_news_are_found_by_the_regular_look(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "TICK", 0.01)
    monkeypatch.setattr(node_module, "LOOK", 0.02)
    async with running(server, 60) as one, running(server, 60) as two:
        watcher = await watching(one)
        publish = server.nodes[1].publish

        async def lose(publication: Publication, *options: Any) -> Position:
            return START if publication.channel == companion("room") else await publish(publication, *options)

        monkeypatch.setattr(server.nodes[1], "publish", lose)
        await come(two, "a")
        await until(lambda: list(watcher.here) == ["a"])


async def test_many_come_at_once(server: Server) -> None:
    # On a busy machine, that many may keep a node from renewing a short lease.
    async with running(server, 60) as one, running(server, 60) as two:
        watcher = await watching(two)
        await asyncio.gather(*(come(one, str(number)) for number in range(3000)))
        await until(lambda: len(watcher.here) == 3000)
        assert len(watcher.events) < 100
        assert len(await two.presence("room")) == 3000


async def test_a_watch_that_nobody_is_told_by_is_closed(server: Server, nodes: tuple[Node, Node]) -> None:
    watcher = await watching(nodes[0])
    nodes[0].leave("room", watcher)
    await until(lambda: not nodes[0]._watches)
    await come(nodes[1], "a")
    again = await watching(nodes[0])
    assert list(again.here) == ["a"]


# In an app


hub = Hub(presence_ttl=TTL)
room = hub.channel("room:{room_id}", presence=True)
plain = hub.channel("plain")
app = FastAPI()
app.include_router(hub.router)


@app.websocket("/rooms/{room_id}/{user}")
async def in_room(websocket: WebSocket, room_id: str, user: str, join_leave: JoinLeave | None = None) -> None:
    async with hub.connection(websocket, user=user) as client:
        await client.subscribe(f"room:{room_id}", info={"typing": False}, join_leave=join_leave)
        await client.send_text("ready")
        async for _ in client.iter_text():
            await client.unsubscribe(f"room:{room_id}")


@app.get("/rooms/{room_id}")
async def who(room_id: str) -> Presence:
    return await hub.presence(f"room:{room_id}")


def test_members_of_a_channel_with_presence_are_present() -> None:
    with TestClient(app) as client, client.websocket_connect("/rooms/1/ann?join_leave=users") as ann:
        assert ann.receive_json()["entries"][0]["user"] == "ann"
        assert ann.receive_text() == "ready"
        with client.websocket_connect("/rooms/1/bob") as bob:
            assert bob.receive_text() == "ready"
            joined = ann.receive_json()
            assert joined["type"] == "join"
            assert joined["channel"] == "room:1"
            (member,) = joined["entries"]
            assert (member["user"], member["info"]) == ("bob", {"typing": False})
            assert {each["user"] for each in client.get("/rooms/1").json()["entries"]} == {"ann", "bob"}
        assert ann.receive_json() == {"type": "leave", "channel": "room:1", "entries": [member]}
        with client.websocket_connect("/rooms/1/bob") as bob:
            bob.receive_text()
            assert ann.receive_json()["type"] == "join"
            bob.send_text("unsubscribe")
            assert ann.receive_json()["type"] == "leave"
        assert [each["user"] for each in client.get("/rooms/1").json()["entries"]] == ["ann"]


def test_who_unsubscribes_while_presence_is_entered_is_handed_nothing() -> None:
    hub = Hub()
    hub.channel("room", presence=True, history=History(size=10))
    app = FastAPI()
    app.include_router(hub.router)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        await hub.publish("room", "before")
        async with hub.connection(websocket) as client:
            joining = asyncio.create_task(client.subscribe("room", history=10, positions=True))
            await asyncio.sleep(0)
            await client.unsubscribe("room")
            await joining
            await client.send_text("end")

    with TestClient(app) as client, client.websocket_connect("/") as websocket:
        assert websocket.receive_text() == "end"


async def test_presence_is_for_channels_that_are_declared_with_it() -> None:
    async with hub:
        for channel in ("plain", "undeclared"):
            with pytest.raises(InvalidChannel, match="presence=True"):
                await hub.presence(channel)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"info": "x" * 5000}, InvalidData, "at most 4096 bytes"),
        ({"info": object()}, InvalidData, "JSON"),
        ({"join_leave": "everything"}, ValueError, "'connections', 'users'"),
    ],
)
def test_what_cannot_be_told_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    app = FastAPI()
    app.include_router(hub.router)
    raised: list[Exception] = []

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with hub.connection(websocket) as client:
            for channel in ("room:1", "plain"):
                try:
                    await client.subscribe(channel, **options)
                except (ValueError, TypeError) as exc:
                    raised.append(exc)
            await client.send_text("done")

    with TestClient(app) as client, client.websocket_connect("/") as socket:
        assert socket.receive_text() == "done"
    assert isinstance(raised[0], error)
    assert message in str(raised[0])
    assert len(raised) == 2


def test_presence_needs_time() -> None:
    with pytest.raises(ValueError, match="presence_ttl"):
        Hub(presence_ttl=0)
