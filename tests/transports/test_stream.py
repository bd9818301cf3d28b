"""The body of a streaming response over a ``send`` that completes, suspends, fails or needs a task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hubbub.core.frames import Message
from hubbub.core.outbox import Outbox
from hubbub.protocols.event_stream import EVENT_STREAM, EventStreamBatch
from hubbub.transports.stream import StreamTransport
from hubbub.transports.writer import Writer
from tests.clients import DEADLINE
from tests.transports.owner import SlowOwner

START = {"type": "http.response.start", "status": 200, "headers": []}


class Server:
    """ASGI's ``send``."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        #: While it is clear, the client takes nothing.
        self.takes = asyncio.Event()
        self.takes.set()
        self.needs_task = False
        self.error: Exception | None = None

    async def send(self, event: Any) -> None:
        if self.needs_task:
            async with asyncio.timeout(DEADLINE):
                await asyncio.sleep(0)
        if not self.takes.is_set():
            await self.takes.wait()
        if self.error is not None:
            raise self.error
        self.events.append(event)

    def not_a_coroutine_function(self, event: Any) -> Awaitable[None]:
        return asyncio.ensure_future(self.send(event))

    @property
    def body(self) -> list[bytes]:
        assert self.events[0] == START
        assert all(event["type"] == "http.response.body" for event in self.events[1:])
        return [event["body"] for event in self.events[1:]]


class Rig:
    def __init__(self, limit: int = 100_000, *, wraps: bool = False) -> None:
        self.server = Server()
        self.aborts = 0
        send: Callable[[Any], Awaitable[None]] = (
            self.server.not_a_coroutine_function if wraps else self.server.send
        )
        self.transport = StreamTransport(
            send, START, lambda code, reason: b"%d %b" % (code, reason.encode()), self.abort
        )
        self.owner = SlowOwner()
        self.writer = Writer("ann", self.transport, Outbox(limit, "disconnect"), self.owner)
        self.owner.writer = self.writer

    def abort(self) -> None:
        self.aborts += 1

    def write(self, *texts: str) -> None:
        for text in texts:
            self.writer.send(EVENT_STREAM.reply(Message(text.encode())))

    async def has_sent(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while len(self.server.events) < count:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_the_response_starts_with_the_first_batch_and_costs_no_task() -> None:
    rig, before = Rig(), asyncio.all_tasks()
    assert not rig.transport.has_started
    rig.write("1", "2")
    # Nothing has been awaited.
    assert rig.server.body == [b"1", b"2"]
    assert all(event["more_body"] for event in rig.server.events[1:])
    assert rig.transport.has_started
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("how", ["suspends", "needs a task", "wrapped"])
async def test_the_start_is_sent_once_whatever_the_server_does(how: str) -> None:
    rig = Rig(wraps=how == "wrapped")
    if how == "suspends":
        rig.server.takes.clear()
    rig.server.needs_task = how == "needs a task"
    rig.write("1", "2")
    await asyncio.sleep(0)
    rig.write("3")
    rig.server.takes.set()
    await rig.has_sent(4)
    assert rig.server.body == [b"1", b"2", b"3"]
    rig.writer.end(4000, "bye")
    await rig.writer.ended(DEADLINE)
    assert rig.server.body == [b"1", b"2", b"3", b"4000 bye"]
    assert rig.server.events[-1]["more_body"] is False
    assert rig.writer.is_gone


async def test_a_stream_that_ends_before_its_first_batch_is_a_whole_response() -> None:
    rig = Rig()
    rig.writer.end(4000)
    await rig.writer.ended(DEADLINE)
    assert rig.server.body == [b"4000 "]
    assert rig.aborts == 0


async def test_a_stream_that_is_cut_before_it_starts_sends_nothing() -> None:
    for ends in (False, True):
        rig = Rig()
        if ends:
            rig.writer.end(4000)
        rig.writer.cut()
        await rig.transport.stopped()
        assert (rig.server.events, rig.transport.has_started) == ([], False)


async def test_a_client_that_takes_nothing_is_bounded_and_dropped() -> None:
    rig = Rig(limit=1000)
    rig.write("1")
    rig.server.takes.clear()
    for text in "23456789":
        rig.writer.send(EventStreamBatch([Message(text.encode())], "chat"))
    assert rig.owner.slow_disconnects == 1
    # What it is being sent; nothing waits any more.
    assert rig.writer.backlog < 1000
    assert rig.transport.stalled(asyncio.get_running_loop().time() + 10) >= 10
    rig.writer.end(3008, discard=True)
    await rig.writer.ended(0.01)
    assert rig.aborts == 1
    assert rig.server.body == [b"1"]
    assert rig.writer.backlog == 0


async def test_a_client_that_has_left_is_noticed_by_an_error_of_the_server() -> None:
    rig = Rig()
    rig.write("1")
    rig.server.error = OSError("gone")
    rig.write("2")
    assert rig.writer.is_gone
    rig.write("3")
    assert rig.server.body == [b"1"]
