"""An event stream as a connection: heartbeats, and every way in which it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from hubbub import EngineUnavailable, History
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.connection.limits import Limits
from hubbub.connection.stream import Stream
from hubbub.core.publication import Publication
from hubbub.engines.memory import MemoryEngine
from hubbub.node.node import Node
from hubbub.protocols.event_stream import HEARTBEAT
from hubbub.servers.stopping import Stopping
from tests.clients import DEADLINE
from tests.events import parse

LIMITS = Limits(
    max_message_size=1000,
    outbox_limit=10_000,
    slow_consumer="disconnect",
    send_timeout=30.0,
    close_timeout=1.0,
)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    declaration = ChannelDeclaration("chat", History(), presence=True)
    node = Node(MemoryEngine("memory://"), lambda name: declaration)
    await node.start(has_presence=True)
    try:
        yield node
    finally:
        await node.stop(1012, "restart", 1)


class Request:
    """A request that a server has received, and its answer."""

    def __init__(self, node: Node, stopping: Stopping | None = None) -> None:
        self.events: list[Any] = []
        self.has_left = asyncio.Event()
        self.stream = Stream(
            node, self.receive, self.send, LIMITS, stopping or Stopping(), headers={"X-More": "yes"}
        )

    async def receive(self) -> Any:
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: Any) -> None:
        self.events.append(event)

    async def serve(self, **options: Any) -> None:
        async with self.stream as stream:
            await stream.join("chat", **options)
            await stream.departure()

    @property
    def body(self) -> bytes:
        return b"".join(event["body"] for event in self.events[1:])

    @property
    def is_complete(self) -> bool:
        return self.events[-1].get("more_body") is False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def change(node: Node, text: str) -> None:
    await node.publish(Publication("chat", text.encode(), "text", id=text))


async def nothing_is_left(node: Node) -> None:
    assert (node.stats()["connections"], node.stats()["subscriptions"]) == (0, 0)
    async with asyncio.timeout(DEADLINE):
        while len(await node.presence("chat")):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_the_head_of_the_response(node: Node) -> None:
    request = Request(node)
    serving = asyncio.create_task(request.serve())
    await until(lambda: bool(request.events))
    assert request.events[0] == {
        "type": "http.response.start",
        "status": 200,
        "headers": [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            (b"x-more", b"yes"),
        ],
    }
    request.has_left.set()
    await serving
    assert not request.is_complete
    await nothing_is_left(node)


async def test_a_heartbeat_every_15_seconds(node: Node) -> None:
    request = Request(node)
    serving = asyncio.create_task(request.serve())
    await until(lambda: bool(request.events))
    before, begin = request.body, 1000.0
    beats = []
    for second in range(50):
        # As the node does, once a second.
        request.stream.handle.tick(begin + second)
        beats.append(request.body.removeprefix(before).count(b":\n\n"))
    assert beats == [0] * 15 + [1] * 15 + [2] * 15 + [3] * 5
    assert request.body == before + 3 * HEARTBEAT
    request.has_left.set()
    await serving


async def test_no_heartbeat_answers_a_request_that_may_still_be_refused(node: Node) -> None:
    request, may_fail = Request(node), asyncio.Event()

    async def snapshot() -> bytes:
        await may_fail.wait()
        raise EngineUnavailable("the database is away")

    serving = asyncio.create_task(request.serve(snapshot=snapshot))
    for second in range(60):
        request.stream.handle.tick(1000.0 + second)
        await asyncio.sleep(0)
    request.stream.handle.send_event("expiring", "chat", {"seconds": 25})
    may_fail.set()
    with pytest.raises(EngineUnavailable, match="the database is away"):
        await serving
    assert request.events == []
    await nothing_is_left(node)


async def test_the_end_is_an_event_with_code_and_reason(node: Node) -> None:
    request = Request(node)
    serving = asyncio.create_task(request.serve())
    await until(lambda: bool(request.events))
    await change(node, "hi")
    await asyncio.sleep(0)
    request.stream.handle.end(3503, "disconnected")
    await serving
    _, said, close = parse(request.body)
    assert (said.data, close.name) == ("hi", "close")
    assert close.json == {"type": "close", "code": 3503, "reason": "disconnected"}
    # A browser that reconnects has the id of the last publication.
    assert close.id == said.id
    assert request.is_complete
    await nothing_is_left(node)


async def test_a_stream_whose_publications_are_lost_ends_with_3010(node: Node) -> None:
    request = Request(node)
    serving = asyncio.create_task(request.serve())
    await until(lambda: bool(request.events))
    await node.remove_history("chat")
    await change(node, "hi")
    async with asyncio.timeout(DEADLINE):
        await serving
    assert parse(request.body)[-1].json["code"] == 3010


@pytest.mark.parametrize("is_early", [False, True])
async def test_a_restart_sends_no_close(node: Node, is_early: bool) -> None:
    stopping = Stopping()
    request = Request(node, stopping)
    if is_early:
        # The browser is told nothing, and comes back to another worker: an error status would stop it.
        stopping.begin()
        await request.serve()
        assert (request.body, request.events[0]["status"]) == (b"", 200)
    else:
        serving = asyncio.create_task(request.serve())
        await until(lambda: bool(request.events))
        stopping.begin()
        await serving
        assert [event.name for event in parse(request.body)] == ["subscribed"]
    assert request.is_complete
    await nothing_is_left(node)


async def test_a_user_who_is_disconnected_before_the_response_has_started(node: Node) -> None:
    request, reads = Request(node), asyncio.Event()

    async def snapshot() -> bytes:
        request.stream.handle.end(3503, "disconnected")
        reads.set()
        return b"1"

    await request.serve(snapshot=snapshot)
    (close,) = parse(request.body)
    assert close.json["code"] == 3503
    assert request.is_complete
    await nothing_is_left(node)


async def test_an_error_and_an_end_at_once_give_one_answer(node: Node) -> None:
    request = Request(node)

    async def snapshot() -> bytes:
        request.stream.handle.end(3503, "disconnected")
        raise LookupError("no such room")

    with pytest.raises(LookupError, match="no such room"):
        await request.serve(snapshot=snapshot)
    assert request.events == []
    await nothing_is_left(node)


async def test_an_error_after_the_start_completes_the_response(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    request = Request(node)
    async with request.stream as stream:
        await stream.join("chat")
        raise LookupError("a bug")
    assert parse(request.body)[-1].json["code"] == 1011
    assert "An event stream of 'chat' failed; closing it." in caplog.text
    await nothing_is_left(node)


async def test_cancellation_at_every_await_leaves_nothing_behind(node: Node) -> None:
    async def snapshot() -> bytes:
        await change(node, "hi")
        return b"1"

    for turns in range(200):
        request = Request(node)
        serving = asyncio.create_task(request.serve(snapshot=snapshot))
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns >= 20 and request.events:
            # It has joined, and waits for the client: one more, and all have been tried.
            serving.cancel()
            await asyncio.wait([serving])
            assert serving.cancelled()
            await nothing_is_left(node)
            return
        serving.cancel()
        await asyncio.wait([serving])
        assert serving.cancelled()
        await nothing_is_left(node)
    raise AssertionError("it never joined")


async def test_a_client_that_leaves_while_it_joins_is_noticed_afterwards(node: Node) -> None:
    request = Request(node)
    request.has_left.set()
    async with asyncio.timeout(DEADLINE):
        await request.serve()
    await nothing_is_left(node)
