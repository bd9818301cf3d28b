"""A writer in front of a transport that takes, holds, closes and is lost when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hubbub.core.frames import Batch, Frame, Message
from hubbub.core.outbox import Outbox
from hubbub.core.publication import Position, Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.plain import PLAIN
from hubbub.transports.base import Source, Transport
from hubbub.transports.writer import Writer
from tests.transports.owner import SlowOwner


class Pipe(Transport):
    """A transport of any carrier, without a WebSocket."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[bytes] = []
        self.rests: list[bytes] = []
        self.closed_with: list[tuple[int, str]] = []
        self.is_aborted = False

    @property
    def source(self) -> Source:
        assert self._source is not None
        return self._source

    @property
    def write(self) -> Callable[[Any], int]:
        return self._take

    def _take(self, batch: Batch) -> int:
        self.taken.append(bytes(batch))
        return len(batch) - 1 if batch.endswith(b"!") else len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        self.rests.append(batch[taken:])

    def close(self, code: int, reason: str) -> None:
        self.closed_with.append((code, reason))

    def abort(self) -> None:
        self.is_aborted = True

    def stalled(self, now: float) -> float:
        return now

    def drain(self) -> None:
        while (batch := self.source.take()) is not None:
            self._take(batch)
            self.source.sent(batch)
        self.source.flow()


class Rig:
    def __init__(self, limit: int = 1000) -> None:
        self.pipe = Pipe()
        self.owner = SlowOwner()
        self.writer = Writer("ann", self.pipe, Outbox(limit, "disconnect"), self.owner)
        self.owner.writer = self.writer


def batch(text: str, channel: str | None = "chat") -> Batch:
    return Batch([Message(text.encode())], channel)


async def test_batches_go_to_the_transport_while_it_takes_and_wait_while_it_does_not() -> None:
    rig = Rig()
    rig.writer.send(batch("1"))
    rig.writer.send(batch("2!"))
    assert rig.pipe.rests == [b"!"]
    rig.pipe.source.hold()
    rig.writer.send(batch("3"))
    assert rig.pipe.taken == [b"1", b"2!"]
    assert rig.writer.backlog == batch("3").cost
    rig.pipe.drain()
    rig.writer.send(batch("4"))
    assert rig.pipe.taken == [b"1", b"2!", b"3", b"4"]
    assert rig.writer.backlog == 0


async def test_a_batch_that_is_being_sent_counts_until_it_is_sent() -> None:
    rig = Rig()
    sending = batch("1")
    rig.pipe.source.hold(sending)
    assert rig.writer.backlog == sending.cost
    assert rig.pipe.source.take() is None
    rig.pipe.source.sent(sending)
    assert rig.writer.backlog == 0


async def test_the_close_frame_follows_what_waits() -> None:
    rig = Rig()
    rig.pipe.source.hold()
    rig.writer.send(batch("1"))
    rig.writer.end(4000, "bye")
    rig.writer.end(4001, "another")
    rig.writer.send(batch("too late"))
    assert rig.pipe.closed_with == []
    rig.pipe.drain()
    assert rig.pipe.taken == [b"1"]
    assert rig.pipe.closed_with == [(4000, "bye")]


async def test_what_waits_can_be_dropped_so_that_the_close_frame_is_next() -> None:
    for ends_before in (False, True):
        rig = Rig()
        rig.pipe.source.hold()
        rig.writer.send(batch("1"))
        if ends_before:
            rig.writer.end(4000)
        rig.writer.end(4000, discard=True)
        assert rig.pipe.closed_with == [(4000, "")]
        assert rig.writer.backlog == 0


async def test_the_owner_decides_what_happens_to_a_slow_client() -> None:
    rig = Rig(limit=300)
    rig.owner.writer = None
    rig.pipe.source.hold()
    rig.writer.send(batch("1"))
    rig.writer.send(batch("2"))
    assert rig.owner.slow_disconnects == 1
    # It has not ended the connection.
    assert rig.pipe.closed_with == []
    rig.writer.send(batch("3"))
    rig.pipe.drain()
    assert rig.pipe.taken == [b"3"]


async def test_the_owner_answers_for_the_subscriber() -> None:
    rig = Rig()
    start, missed = Start(Position(1, "e"), recovered=True), [Frame(Publication("chat", b"2", "text"))]
    rig.writer.joined("chat", PLAIN, start, missed)
    assert not rig.writer.broken("chat", Position(2, "e"))
    assert rig.owner.joins == [("chat", start, missed)]
    assert rig.owner.breaks == [("chat", Position(2, "e"))]
    assert rig.writer.recovers_in_pieces


async def test_the_owner_is_not_asked_about_a_client_that_is_gone() -> None:
    rig = Rig()
    rig.pipe.source.hold()
    rig.writer.send(batch("1"))
    rig.pipe.lost()
    assert rig.writer.is_gone
    assert rig.writer.backlog == 0
    rig.writer.joined("chat", PLAIN, Start(Position(1, "e")), ())
    # It stays until it leaves by itself.
    assert rig.writer.broken("chat", Position(2, "e"))
    rig.writer.end(4000)
    rig.writer.send(batch("2"))
    assert (rig.owner.joins, rig.owner.breaks) == ([], [])
    assert (rig.pipe.taken, rig.pipe.closed_with) == ([], [])
    assert await rig.writer.ready() == 0


async def test_a_transport_that_is_lost_before_it_is_opened_cuts_its_writer() -> None:
    pipe = Pipe()
    pipe.lost()
    writer = Writer("ann", pipe, Outbox(1000, "disconnect"), SlowOwner())
    assert writer.is_gone
    writer.send(batch("1"))
    assert pipe.taken == []


async def test_a_client_that_does_not_take_what_waits_in_time_is_given_up() -> None:
    rig = Rig()
    rig.pipe.source.hold()
    rig.writer.send(batch("1"))
    rig.writer.end(4000)
    await rig.writer.ended(0.01)
    assert rig.pipe.is_aborted
    assert rig.writer.is_gone
    assert rig.pipe.closed_with == []


async def test_a_task_that_waits_for_room_is_woken_by_each_batch_that_is_sent() -> None:
    rig = Rig(limit=250)
    rig.pipe.source.hold()
    for text in "12":
        rig.writer.send(batch(text, channel=None))
    waiting = asyncio.create_task(rig.writer.room())
    await asyncio.sleep(0)
    for _ in range(2):
        assert not waiting.done()
        taken = rig.pipe.source.take()
        assert taken is not None
        rig.pipe.source.sent(taken)
        await asyncio.sleep(0)
    await waiting
