"""Snapshots: the state with which a subscriber begins, and the publications after it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hubbub import EngineUnavailable, History, InvalidChannel, Position
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.publication import Publication
from hubbub.engines import Engine, engine_for
from hubbub.engines.memory import MemoryEngine
from hubbub.node.node import Node
from hubbub.node.presence import encode_entry
from hubbub.node.snapshots import ATTEMPTS
from hubbub.protocols.envelope import DOOR_ENVELOPE
from hubbub.types import PresenceEntry
from tests.clients import DEADLINE
from tests.subscriber import Subscriber

HISTORY = History(size=2000, ttl=60)


@asynccontextmanager
async def running(engine: Engine, history: History | None = HISTORY) -> AsyncIterator[Node]:
    declaration = ChannelDeclaration("chat", history, presence=True)
    node = Node(engine, lambda name: declaration if name == "chat" else None)
    await node.start(has_presence=True)
    try:
        yield node
    finally:
        await node.stop(1012, "restart", 1)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running(MemoryEngine("memory://")) as node:
        yield node


async def change(node: Node, number: int) -> Position:
    return await node.publish(Publication("chat", b"%d" % number, "json", id=f"id{number}"))


class Client(Subscriber):
    """A subscriber that reads envelopes."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.received]

    @property
    def opening(self) -> dict[str, Any]:
        opening = self.messages[0]
        assert opening["type"] == "subscribed"
        return opening

    @property
    def changes(self) -> list[int]:
        return [message["data"] for message in self.messages[1:]]


def state(*numbers: int, calls: list[str] | None = None) -> Callable[[], Awaitable[bytes]]:
    async def snapshot() -> bytes:
        if calls is not None:
            calls.append("read")
        return json.dumps(numbers).encode()

    return snapshot


async def join(node: Node, client: Client, snapshot: Any, since: Position | None = None) -> Position:
    return await node.join("chat", client, since, form=DOOR_ENVELOPE, snapshot=snapshot)


async def test_a_subscriber_begins_with_the_state(node: Node) -> None:
    top = await change(node, 1)
    client = Client()
    assert await join(node, client, state(1)) == top
    assert client.opening == {"type": "subscribed", "id": str(top), "data": [1]}
    await change(node, 2)
    await asyncio.sleep(0)
    assert client.changes == [2]


async def test_all_that_is_published_while_the_state_is_read_follows(node: Node) -> None:
    before = await change(node, 1)

    async def snapshot() -> bytes:
        await change(node, 2)
        found = b"[1,2]"
        await change(node, 3)
        return found

    client = Client()
    await join(node, client, snapshot)
    assert client.opening == {"type": "subscribed", "id": str(before), "data": [1, 2]}
    # The state has 2 already, which may follow all the same; it does not have 3.
    assert client.changes == [2, 3]
    await change(node, 4)
    await asyncio.sleep(0)
    assert client.changes == [2, 3, 4]


async def test_a_position_that_is_recovered_needs_no_state(node: Node) -> None:
    since = await change(node, 1)
    await change(node, 2)
    client, calls = Client(), list[str]()
    await join(node, client, state(1, 2, calls=calls), since)
    assert client.opening == {"type": "subscribed", "id": str(since), "recovered": True}
    assert (client.changes, calls) == ([2], [])


@pytest.mark.parametrize("since", [Position(1, "lost"), Position(99, "")])
async def test_a_position_that_is_lost_is_replaced_by_the_state(node: Node, since: Position) -> None:
    top = await change(node, 1)
    client = Client()
    await join(node, client, state(1), since)
    assert client.opening == {"type": "subscribed", "id": str(top), "recovered": False, "data": [1]}
    assert client.changes == []


async def test_a_state_that_is_out_of_date_is_read_again() -> None:
    async with running(MemoryEngine("memory://"), History(size=3, ttl=60)) as node:
        calls = 0

        async def snapshot() -> bytes:
            nonlocal calls
            calls += 1
            for number in range(10 if calls < ATTEMPTS else 2):
                await change(node, number)
            return b"%d" % calls

        client = Client()
        await join(node, client, snapshot)
        assert (client.opening["data"], client.changes) == (ATTEMPTS, [0, 1])


async def test_a_channel_that_is_too_busy_for_its_history_refuses_the_subscriber() -> None:
    async with running(MemoryEngine("memory://"), History(size=3, ttl=60)) as node:
        calls = 0

        async def snapshot() -> bytes:
            nonlocal calls
            calls += 1
            for number in range(4):
                await change(node, number)
            return b"1"

        client = Client()
        with pytest.raises(EngineUnavailable, match=r"Could not join a snapshot of 'chat'.*History\(size="):
            await join(node, client, snapshot)
        assert calls == ATTEMPTS
        assert (client.received, node.stats()["subscriptions"]) == ([], 0)


async def test_a_history_that_is_removed_while_the_state_is_read(node: Node) -> None:
    await change(node, 1)
    calls = 0

    async def snapshot() -> bytes:
        nonlocal calls
        calls += 1
        if calls == 1:
            before = node.position("chat")
            await node.remove_history("chat")
            await change(node, 2)
            async with asyncio.timeout(DEADLINE):
                # Until the feed has noticed it.
                while node.position("chat").epoch == before.epoch:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        return b"%d" % calls

    client = Client()
    await join(node, client, snapshot)
    assert client.opening["data"] == 2
    await change(node, 3)
    async with asyncio.timeout(DEADLINE):
        while not client.changes:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert client.changes[-1] == 3


async def test_a_state_that_cannot_be_read_leaves_nothing_behind(node: Node) -> None:
    async def snapshot() -> bytes:
        raise LookupError("no such room")

    client = Client()
    entry = encode_entry(PresenceEntry(client.id))
    with pytest.raises(LookupError, match="no such room"):
        await node.join("chat", client, form=DOOR_ENVELOPE, snapshot=snapshot, entry=entry)
    assert (client.received, node.stats()["subscriptions"]) == ([], 0)
    await no_presence(node)


async def no_presence(node: Node) -> None:
    async with asyncio.timeout(DEADLINE):
        while len(await node.presence("chat")):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_subscriber_that_leaves_while_the_state_is_read_is_not_added(node: Node) -> None:
    client = Client()

    async def snapshot() -> bytes:
        node.leave("chat", client)
        return b"1"

    await join(node, client, snapshot)
    assert (client.received, node.stats()["subscriptions"]) == ([], 0)


async def test_a_channel_without_history_has_no_snapshots() -> None:
    async with running(MemoryEngine("memory://"), None) as node:
        client, calls = Client(), list[str]()
        with pytest.raises(InvalidChannel, match="Expected a channel with a history for a snapshot"):
            await join(node, client, state(1, calls=calls))
        assert (client.received, calls, node.stats()["subscriptions"]) == ([], [], 0)


async def test_cancellation_at_every_await_leaves_nothing_behind() -> None:
    for turns in range(1000):
        async with running(MemoryEngine("memory://")) as node:
            await change(node, 1)

            async def snapshot(node: Node = node) -> bytes:
                await change(node, 2)
                await asyncio.sleep(0)
                return b"[1,2]"

            client = Client()
            entry = encode_entry(PresenceEntry(client.id))
            since = Position(1, "lost") if turns % 2 else None
            joining = asyncio.create_task(
                node.join("chat", client, since, form=DOOR_ENVELOPE, snapshot=snapshot, entry=entry)
            )
            for _ in range(turns // 2):
                await asyncio.sleep(0)
            is_done = joining.done()
            joining.cancel()
            await asyncio.wait([joining])
            if joining.cancelled():
                assert node.stats()["subscriptions"] == 0
                await no_presence(node)
            else:
                assert client.opening["data"] == [1, 2]
                assert node.stats()["subscriptions"] == 1
            if is_done:
                return
    raise AssertionError("it never ended")


@pytest.fixture(params=["memory", "sqlite", "redis", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    if request.param == "memory":
        return "memory://"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hub.db'}"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


async def test_a_thousand_concurrent_changes_are_all_seen(url: str, namespace: str) -> None:
    """The database is a set; each change is committed to it, and then published."""
    count, publishers, clients = 1000, 8, 25
    chance = random.Random(5)
    async with running(engine_for(url, namespace)) as node:
        database: set[int] = set()
        found: list[Client] = []

        async def publish(first: int) -> None:
            for number in range(first, count, publishers):
                database.add(number)
                await asyncio.sleep(0)
                await change(node, number)

        async def snapshot() -> bytes:
            # A query that takes a while before and after its moment.
            await asyncio.sleep(chance.random() * 0.01)
            rows = json.dumps(sorted(database)).encode()
            await asyncio.sleep(chance.random() * 0.01)
            return rows

        async def connect(number: int) -> None:
            while len(database) < count * number // clients:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            client = Client(f"client {number}")
            await join(node, client, snapshot)
            found.append(client)

        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
            for first in range(publishers):
                tasks.create_task(publish(first))
            for number in range(clients):
                tasks.create_task(connect(number))
        end = (await node.publish(Publication("chat", b'"end"', "json", id="end"))).offset
        for client in found:
            async with asyncio.timeout(DEADLINE):
                while '"end"' not in client.received[-1]:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            first = Position.parse(client.opening["id"]).offset
            offsets = [Position.parse(message["id"]).offset for message in client.messages[1:]]
            # In order, without a gap, nothing twice.
            assert offsets == list(range(first + 1, end + 1))
            assert set(client.opening["data"]) | set(client.changes[:-1]) == set(range(count))
        assert len(found) == clients
