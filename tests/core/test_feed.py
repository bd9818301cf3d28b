from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from sys import maxsize

import pytest

from hubbub.core.feed import Feed
from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame, Message
from hubbub.core.publication import Position, Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.plain import PLAIN


class Loop:
    """The event loop, as far as a feed knows it: ``turn`` runs the callbacks that were scheduled."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.asked.append(callback)

    def turn(self) -> None:
        asked, self.asked = self.asked, []
        for callback in asked:
            callback()


def no_repair(feed: Feed) -> None:
    raise AssertionError("nothing is missing where there is no history")


class Recorder:
    """A subscriber that keeps the batches that it was handed."""

    recovers_in_pieces = True

    def __init__(self, name: str) -> None:
        self.id = name
        self.batches: list[Batch] = []

    def write(self, batch: Batch) -> int:
        self.batches.append(batch)
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("all of it had been taken")

    async def ready(self) -> int:
        return maxsize

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        assert not missed

    def broken(self, channel: str, position: Position) -> bool:
        raise AssertionError("nothing was lost")

    @property
    def messages(self) -> list[Message]:
        return [message for batch in self.batches for message in batch.messages]

    @property
    def received(self) -> list[str]:
        return [message.data.decode() for message in self.messages]


class Failing(Recorder):
    def write(self, batch: Batch) -> int:
        super().write(batch)
        raise RuntimeError("no way out")


class Partial(Recorder):
    """Takes 3 bytes of each batch, or raises."""

    def __init__(self, name: str, error: OSError | None = None) -> None:
        super().__init__(name)
        self.error = error
        self.rests: list[bytes] = []

    def write(self, batch: Batch) -> int:
        if self.error is not None:
            raise self.error
        return 3

    def write_rest(self, batch: Batch, taken: int) -> None:
        self.rests.append(batch[taken:])


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def feed(loop: Loop) -> Feed:
    return Feed("chat", loop.call_soon, no_repair)


@pytest.fixture
def ann(feed: Feed) -> Recorder:
    return joined(feed, Recorder("ann"))


@pytest.fixture
def ben(feed: Feed) -> Recorder:
    return joined(feed, Recorder("ben"))


def joined(feed: Feed, recorder: Recorder) -> Recorder:
    feed.join(recorder, PLAIN)
    return recorder


def say(feed: Feed, *texts: str, exclude: str | None = None) -> list[Frame]:
    frames = [feed.publish(Publication("chat", text.encode(), "text", exclude)) for text in texts]
    return [frame for frame in frames if frame is not None]


# Collecting


def test_nothing_is_written_until_the_turn_ends(feed: Feed, loop: Loop, ann: Recorder) -> None:
    say(feed, "1")
    assert ann.batches == []
    loop.turn()
    assert ann.received == ["1"]


def test_publications_of_one_turn_are_scheduled_once_and_written_once(
    feed: Feed, loop: Loop, ann: Recorder
) -> None:
    say(feed, "1", "2", "3")
    assert len(loop.asked) == 1
    loop.turn()
    assert len(ann.batches) == 1
    assert ann.received == ["1", "2", "3"]


def test_every_turn_is_scheduled_by_itself(feed: Feed, loop: Loop, ann: Recorder) -> None:
    say(feed, "1")
    loop.turn()
    say(feed, "2")
    assert len(loop.asked) == 1
    loop.turn()
    assert [[message.data for message in batch.messages] for batch in ann.batches] == [[b"1"], [b"2"]]


def test_nothing_is_scheduled_when_nothing_is_published(feed: Feed, loop: Loop, ann: Recorder) -> None:
    feed.flush()
    assert loop.asked == []
    assert ann.batches == []


def test_a_batch_names_the_channel(feed: Feed, loop: Loop, ann: Recorder) -> None:
    say(feed, "1")
    loop.turn()
    assert ann.batches[0].channel == "chat"


def test_publish_returns_the_frame_that_subscribers_are_sent(feed: Feed, loop: Loop, ann: Recorder) -> None:
    frame = feed.publish(Publication("chat", b"\x00", "binary"))
    assert frame is not None
    loop.turn()
    assert (frame.publication.kind, frame.publication.data) == ("binary", b"\x00")
    assert ann.messages == [frame.encoded(PLAIN.codec)]


def test_all_subscribers_are_sent_the_same_objects(
    feed: Feed, loop: Loop, ann: Recorder, ben: Recorder
) -> None:
    # Encoded once however many there are: a subscriber that is excluded from one message shares the others.
    cid = joined(feed, Recorder("cid"))
    frames = [*say(feed, "1"), *say(feed, "2", exclude="cid"), *say(feed, "3")]
    loop.turn()
    assert ann.batches[0] is ben.batches[0]
    messages = [frame.encoded(PLAIN.codec) for frame in frames]
    assert ann.messages == messages
    assert cid.messages == [messages[0], messages[2]]


# Subscribers


def test_a_feed_counts_its_subscribers(feed: Feed) -> None:
    ann, ben = Recorder("ann"), Recorder("ben")
    assert len(feed) == 0
    feed.join(ann, PLAIN)
    feed.join(ben, PLAIN)
    assert len(feed) == 2
    feed.leave(ann)
    assert len(feed) == 1


def test_a_subscriber_gets_no_publication_from_before_it_joined(
    feed: Feed, loop: Loop, ann: Recorder
) -> None:
    say(feed, "before")
    ben = joined(feed, Recorder("ben"))
    say(feed, "after")
    loop.turn()
    assert ben.received == ["after"]
    assert ann.received == ["before", "after"]


def test_a_subscriber_that_leaves_gets_all_publications_from_before_and_none_after(
    feed: Feed, loop: Loop, ann: Recorder, ben: Recorder
) -> None:
    say(feed, "before")
    feed.leave(ann)
    assert ann.received == ["before"]
    say(feed, "after")
    loop.turn()
    assert ann.received == ["before"]
    assert ben.received == ["before", "after"]


def test_a_change_of_subscribers_writes_to_all_at_once(feed: Feed, ann: Recorder, ben: Recorder) -> None:
    say(feed, "1")
    feed.join(Recorder("cid"), PLAIN)
    assert ann.received == ben.received == ["1"]


def test_a_flush_that_came_early_is_not_repeated_by_the_turn(feed: Feed, loop: Loop, ann: Recorder) -> None:
    say(feed, "1")
    feed.join(Recorder("ben"), PLAIN)
    loop.turn()
    assert len(ann.batches) == 1


def test_a_publication_after_an_early_flush_in_the_same_turn_is_not_forgotten(
    feed: Feed, loop: Loop, ann: Recorder
) -> None:
    say(feed, "1")
    feed.join(Recorder("ben"), PLAIN)
    say(feed, "2")
    loop.turn()
    assert ann.received == ["1", "2"]


def test_joining_twice_is_joining_once(feed: Feed, loop: Loop, ann: Recorder) -> None:
    say(feed, "1")
    feed.join(ann, PLAIN)
    say(feed, "2")
    loop.turn()
    assert len(feed) == 1
    assert ann.received == ["1", "2"]
    feed.leave(ann)
    assert len(feed) == 0


def test_leaving_without_having_joined_changes_nothing(feed: Feed, loop: Loop, ann: Recorder) -> None:
    feed.leave(Recorder("ben"))
    say(feed, "1")
    loop.turn()
    assert ann.received == ["1"]


def test_a_subscriber_that_joins_again_gets_the_publications_from_then_on(
    feed: Feed, loop: Loop, ann: Recorder
) -> None:
    say(feed, "1")
    feed.leave(ann)
    say(feed, "2")
    feed.join(ann, PLAIN)
    say(feed, "3")
    loop.turn()
    assert ann.received == ["1", "3"]


def test_publishing_without_subscribers_keeps_nothing(feed: Feed, loop: Loop) -> None:
    say(feed, "1")
    loop.turn()
    ann = joined(feed, Recorder("ann"))
    loop.turn()
    assert ann.batches == []


# Exclude


def test_an_excluded_subscriber_gets_the_rest(feed: Feed, loop: Loop, ann: Recorder, ben: Recorder) -> None:
    say(feed, "1")
    say(feed, "2", "3", exclude="ann")
    say(feed, "4", exclude="ben")
    say(feed, "5")
    loop.turn()
    assert ann.received == ["1", "4", "5"]
    assert ben.received == ["1", "2", "3", "5"]
    assert [batch.channel for batch in ann.batches] == ["chat"]


def test_a_subscriber_excluded_from_everything_is_not_written_to(
    feed: Feed, loop: Loop, ann: Recorder, ben: Recorder
) -> None:
    say(feed, "1", "2", exclude="ann")
    loop.turn()
    assert ann.batches == []
    assert ben.received == ["1", "2"]


def test_an_exclusion_holds_for_that_publication_only(feed: Feed, loop: Loop, ann: Recorder) -> None:
    say(feed, "same words", exclude="ann")
    say(feed, "same words")
    loop.turn()
    say(feed, "next turn")
    loop.turn()
    assert ann.received == ["same words", "next turn"]


def test_subscribers_share_a_batch_again_after_an_exclusion(
    feed: Feed, loop: Loop, ann: Recorder, ben: Recorder
) -> None:
    say(feed, "1", exclude="ann")
    loop.turn()
    say(feed, "2")
    loop.turn()
    assert ann.batches[-1] is ben.batches[-1]


def test_an_exclusion_holds_when_a_change_of_subscribers_flushes(feed: Feed, ann: Recorder) -> None:
    say(feed, "1", exclude="ann")
    feed.leave(ann)
    assert ann.batches == []


def test_excluding_a_connection_that_is_not_subscribed_changes_nothing(
    feed: Feed, loop: Loop, ann: Recorder
) -> None:
    say(feed, "1", exclude="zoe")
    loop.turn()
    assert ann.received == ["1"]


# Failures


def test_a_subscriber_that_raises_does_not_affect_the_others(
    feed: Feed, loop: Loop, ann: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    failing = joined(feed, Failing("failing"))
    zoe = joined(feed, Recorder("zoe"))
    say(feed, "1")
    loop.turn()
    say(feed, "2")
    loop.turn()
    assert ann.received == zoe.received == ["1", "2"]
    # Without positions, nothing is lost that was promised: the subscriber stays.
    assert failing.received == ["1", "2"]
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == [
        ("hubbub.core.subscriber", logging.ERROR, "Could not write to connection failing.")
    ] * 2
    assert all(record.exc_info for record in caplog.records)


def test_a_subscriber_that_raises_does_not_keep_others_from_joining_or_leaving(
    feed: Feed, loop: Loop, ann: Recorder
) -> None:
    failing = joined(feed, Failing("failing"))
    say(feed, "1")
    feed.leave(failing)
    say(feed, "2")
    ben = joined(feed, Recorder("ben"))
    say(feed, "3")
    loop.turn()
    assert len(feed) == 2
    assert ann.received == ["1", "2", "3"]
    assert ben.received == ["3"]


def test_a_publication_during_a_flush_goes_out_with_the_next_turn(
    feed: Feed, loop: Loop, ann: Recorder
) -> None:
    class Echo(Recorder):
        def write(self, batch: Batch) -> int:
            if not self.batches:
                say(feed, "echo")
            return super().write(batch)

    echo = joined(feed, Echo("echo"))
    say(feed, "1")
    loop.turn()
    assert ann.received == ["1"]
    loop.turn()
    assert ann.received == echo.received == ["1", "echo"]


@pytest.mark.parametrize(
    ("error", "rest"),
    [(None, b"i there"), (BlockingIOError(), b"\x81\x08hi there"), (ConnectionResetError(), None)],
)
def test_bytes_that_a_subscriber_does_not_take_are_given_to_it_as_a_rest(
    feed: Feed, loop: Loop, ann: Recorder, error: OSError | None, rest: bytes | None
) -> None:
    slow = Partial("slow", error)
    joined(feed, slow)
    ben = joined(feed, Recorder("ben"))
    say(feed, "hi there")
    loop.turn()
    assert slow.rests == [rest or b"\x81\x08hi there"]
    assert ann.received == ben.received == ["hi there"]


class Breaking(Partial):
    """Raises in every method that a feed calls, and keeps the breaks that it was notified of."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.breaks: list[Position] = []

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise RuntimeError("no way out")

    def broken(self, channel: str, position: Position) -> bool:
        self.breaks.append(position)
        raise RuntimeError("no way to notify")


def streamed(offset: int) -> Publication:
    return Publication("chat", b"no. %d" % offset, "text", id=f"id{offset}", offset=offset, epoch="e")


@pytest.fixture
def stream(loop: Loop) -> Feed:
    """The feed of a channel with a history."""
    return Feed("chat", loop.call_soon, lambda feed: None, Position(0, "e"))


def test_a_subscriber_whose_rest_is_lost_is_notified_and_does_not_affect_the_others(
    stream: Feed, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    first, breaking, last = Recorder("first"), Breaking("breaking"), Recorder("last")
    for subscriber in (first, breaking, last):
        stream.join(subscriber, PLAIN)
    stream.publish(streamed(1))
    loop.turn()
    assert first.received == last.received == ["no. 1"]
    assert breaking.breaks == [Position(1, "e")]
    assert [record.getMessage() for record in caplog.records] == [
        "Could not write to connection breaking.",
        "Could not notify connection breaking that publications in 'chat' are lost to it.",
    ]
    stream.publish(streamed(2))
    loop.turn()
    assert first.received == last.received == ["no. 1", "no. 2"]


def test_a_subscriber_that_cannot_be_notified_does_not_keep_the_others_from_it(stream: Feed) -> None:
    one, two = Breaking("one"), Breaking("two")
    stream.join(one, PLAIN)
    stream.join(two, PLAIN)
    stream.verify()
    stream.repaired((), Position(5, "another"))
    assert one.breaks == two.breaks == [Position(5, "another")]


def test_subscribers_are_notified_of_a_publication_that_cannot_be_encoded_and_the_feed_continues(
    stream: Feed, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriber = Breaking("notified")
    stream.join(subscriber, PLAIN)

    def fail(*args: object, **options: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("hubbub.protocols.websocket.WebSocketBatch", fail)
        stream.publish(streamed(1))
        loop.turn()
        assert subscriber.breaks == [Position(1, "e")]
        stream.publish(streamed(2))
        # Leaving and joining flush first.
        stream.leave(subscriber)
    recorder = Recorder("later")
    stream.join(recorder, PLAIN)
    stream.publish(streamed(3))
    loop.turn()
    assert recorder.received == ["no. 3"]
