"""The delivery side of a feed: who is written to, and who is dropped."""

from __future__ import annotations

import sys

import pytest

from hubbub.core.fanout import FanOut
from hubbub.core.frames import Batch, EventFrame, Frame
from hubbub.core.publication import START, Position, Publication
from hubbub.protocols.envelope import ENVELOPE
from hubbub.protocols.plain import PLAIN
from tests.core.test_feed import Loop, Recorder


class Broken(Recorder):
    """Raises when it is written to, or when its rest is; it keeps the breaks that it is notified of.

    :param stays: its answer to a break.
    """

    def __init__(self, name: str, *, stays: bool, has_rest: bool = False) -> None:
        super().__init__(name)
        self.stays = stays
        self.has_rest = has_rest
        self.breaks: list[tuple[str, Position]] = []

    def write(self, batch: Batch) -> int:
        super().write(batch)
        if self.has_rest:
            return 1
        raise RuntimeError("no way out")

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise RuntimeError("no way out for the rest")

    def broken(self, channel: str, position: Position) -> bool:
        self.breaks.append((channel, position))
        return self.stays


def published(offset: int = 0, exclude: str | None = None) -> Frame:
    epoch = "e" if offset else ""
    return Frame(Publication("chat", b"%d" % offset, "text", exclude, f"id{offset}", offset, epoch))


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.mark.parametrize("has_rest", [False, True])
def test_a_subscriber_that_does_not_stay_after_a_break_is_dropped_in_the_same_step(
    loop: Loop, has_rest: bool
) -> None:
    fan_out = FanOut("chat", loop.call_soon, lossless=True)
    first, last = Recorder("first"), Recorder("last")
    leaving, staying = Broken("leaving", stays=False, has_rest=has_rest), Broken("staying", stays=True)
    for subscriber in (first, leaving, staying, last):
        fan_out.add(subscriber, PLAIN)
    fan_out.put_aside(published(7))
    loop.turn()
    assert first.received == last.received == ["7"]
    assert leaving.breaks == staying.breaks == [("chat", Position(7, "e"))]
    assert len(fan_out) == 3
    fan_out.put_aside(published(8))
    loop.turn()
    assert len(leaving.batches) == 1
    assert len(staying.batches) == 2
    assert last.received == ["7", "8"]


def test_without_a_promise_a_subscriber_that_fails_is_neither_notified_nor_dropped(loop: Loop) -> None:
    fan_out = FanOut("chat", loop.call_soon)
    broken = Broken("broken", stays=False)
    fan_out.add(broken, PLAIN)
    fan_out.put_aside(published())
    loop.turn()
    assert broken.breaks == []
    assert len(fan_out) == 1


def test_all_are_notified_of_a_break_and_those_that_do_not_stay_are_dropped(loop: Loop) -> None:
    fan_out = FanOut("chat", loop.call_soon, lossless=True)
    subscribers = [Broken(f"{number}", stays=number % 2 == 0) for number in range(4)]
    for number, subscriber in enumerate(subscribers):
        # The second form goes with its last subscriber.
        fan_out.add(subscriber, ENVELOPE if number % 2 else PLAIN)
    fan_out.notify_broken(Position(3, "e"))
    assert [subscriber.breaks for subscriber in subscribers] == [[("chat", Position(3, "e"))]] * 4
    assert len(fan_out) == 2
    fan_out.put_aside(published(4))
    loop.turn()
    assert [len(subscriber.batches) for subscriber in subscribers] == [1, 0, 1, 0]


def test_a_subscriber_that_is_dropped_gets_no_partial_batch_either(loop: Loop) -> None:
    fan_out = FanOut("chat", loop.call_soon, lossless=True)
    ann, leaving = Recorder("ann"), Broken("leaving", stays=False)
    fan_out.add(leaving, PLAIN)
    fan_out.add(ann, PLAIN)
    for frame in (published(1), published(2, exclude="ann"), published(3, exclude="leaving")):
        fan_out.put_aside(frame)
    loop.turn()
    assert ann.received == ["1", "3"]
    assert leaving.breaks == [("chat", Position(3, "e"))]
    assert len(fan_out) == 1


def test_events_need_no_position(loop: Loop) -> None:
    fan_out = FanOut("room", loop.call_soon, lossless=True)
    ann, ben, leaving = Recorder("ann"), Recorder("ben"), Broken("leaving", stays=False)
    fan_out.add(ann, PLAIN)
    fan_out.add(ben, ENVELOPE)
    fan_out.add(leaving, PLAIN)
    fan_out.put_aside(EventFrame("room", "join", {}))
    loop.turn()
    assert [each.data for each in ann.messages + ben.messages] == [b'{"type":"join","channel":"room"}'] * 2
    assert ann.batches[0].lossless
    assert leaving.breaks == [("room", START)]


def test_nothing_that_was_written_is_kept(loop: Loop) -> None:
    fan_out = FanOut("chat", loop.call_soon)
    fan_out.add(Recorder("ann"), PLAIN)
    frame = published(exclude="ben")
    fan_out.put_aside(frame)
    assert sys.getrefcount(frame) > 2
    loop.turn()
    # This function's and the call's.
    assert sys.getrefcount(frame) == 2
