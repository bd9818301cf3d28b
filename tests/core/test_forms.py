"""Forms side by side in one feed: WebSocket frames with and without envelopes, and lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from hubbub.core.feed import Feed
from hubbub.core.forms import Codec, Form
from hubbub.core.frames import Batch, Frame, Message
from hubbub.core.outbox import Outbox
from hubbub.core.publication import START, Position, Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.envelope import ENVELOPE
from hubbub.protocols.plain import PLAIN
from tests.core.test_feed import Loop, Recorder, no_repair


class JSONLinesCodec:
    """A publication as one line of JSON. It counts what it encodes."""

    def __init__(self) -> None:
        self.count = 0

    def encode(self, publication: Publication) -> Message:
        self.count += 1
        push = {"channel": publication.channel, "data": json.loads(publication.data)}
        return Message(json.dumps(push).encode() + b"\n", publication)

    def event(self, event: str, channel: str, fields: Mapping[str, Any]) -> Message:
        return Message(json.dumps({event: fields}).encode() + b"\n")


class JSONLines:
    """A form without any WebSocket frame, as for a streaming HTTP response."""

    reports_recovery = True

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def batch(self, frames: Sequence[Frame], channel: str, *, lossless: bool) -> Batch:
        return Batch([frame.encoded(self.codec) for frame in frames], channel, lossless=lossless)

    def reply(self, *messages: Message) -> Batch:
        return Batch(messages)

    def opening(self, channel: str, start: Start) -> Message:
        return Message(json.dumps({"subscribed": channel, "recovered": start.recovered}).encode() + b"\n")


class EventBatch(Batch):
    """Each message in an event of an event stream."""

    @staticmethod
    def on_wire(messages: Sequence[Message]) -> bytes:
        return b"".join([b"data: %b\n" % message.data for message in messages])


class Events(JSONLines):
    """Another carrier of the same codec."""

    def batch(self, frames: Sequence[Frame], channel: str, *, lossless: bool) -> Batch:
        messages = [frame.encoded(self.codec) for frame in frames]
        return EventBatch(messages, channel, lossless=lossless)


@pytest.fixture
def codec() -> JSONLinesCodec:
    return JSONLinesCodec()


@pytest.fixture
def lines(codec: JSONLinesCodec) -> Form:
    return JSONLines(codec)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def feed(loop: Loop) -> Feed:
    return Feed("chat", loop.call_soon, no_repair)


def test_a_publication_is_encoded_once_in_each_codec_that_a_subscriber_has(
    feed: Feed, loop: Loop, lines: Form, codec: JSONLinesCodec
) -> None:
    ann, ben, cid, dan, eve = (Recorder(name) for name in ("ann", "ben", "cid", "dan", "eve"))
    feed.join(ann, PLAIN)
    feed.join(ben, PLAIN)
    first = feed.publish(Publication("chat", b"1", "json"))
    loop.turn()
    assert first is not None
    # No subscriber has asked for another encoding.
    assert first.cost == Frame(first.publication).cost
    assert codec.count == 0
    feed.join(cid, ENVELOPE)
    feed.join(dan, ENVELOPE)
    feed.join(eve, lines)
    frame = feed.publish(Publication("chat", b"2", "json"))
    excluding = feed.publish(Publication("chat", b"3", "json", "cid"))
    assert frame is not None
    assert excluding is not None
    loop.turn()
    assert ann.batches[-1] is ben.batches[-1]
    plain = [each.encoded(PLAIN.codec) for each in (frame, excluding)]
    envelopes = [each.encoded(ENVELOPE.codec) for each in (frame, excluding)]
    assert ann.messages[1:] == plain
    assert dan.messages == envelopes
    assert cid.messages == envelopes[:1]
    assert codec.count == 2
    assert eve.batches == [b'{"channel": "chat", "data": 2}\n{"channel": "chat", "data": 3}\n']
    assert len(feed) == 5


def test_forms_that_differ_in_their_carrier_share_a_codec(
    feed: Feed, loop: Loop, codec: JSONLinesCodec
) -> None:
    ann, ben = Recorder("ann"), Recorder("ben")
    feed.join(ann, JSONLines(codec))
    feed.join(ben, Events(codec))
    feed.publish(Publication("chat", b"[1]", "json"))
    loop.turn()
    assert ann.batches == [b'{"channel": "chat", "data": [1]}\n']
    assert ben.batches == [b'data: {"channel": "chat", "data": [1]}\n\n']
    assert codec.count == 1


def test_a_subscriber_has_one_form(feed: Feed, loop: Loop) -> None:
    ann = Recorder("ann")
    feed.join(ann, PLAIN)
    feed.join(ann, ENVELOPE)
    assert len(feed) == 1
    feed.publish(Publication("chat", b"1", "json"))
    loop.turn()
    assert len(ann.messages) == 1
    feed.leave(ann)
    assert len(feed) == 0


def test_any_form_waits_in_an_outbox_and_keeps_its_carrier(codec: JSONLinesCodec) -> None:
    form, outbox = Events(codec), Outbox(10_000, "latest")
    frames = [Frame(Publication("chat", b"%d" % number, "json")) for number in range(4)]
    for some in (frames[:1], frames[1:]):
        assert outbox.push(form.batch(some, "chat", lossless=False))
    assert outbox.take() == b'data: {"channel": "chat", "data": 3}\n\n'
    assert outbox.dropped == 3


def test_missed_publications_are_handed_over_in_any_form(lines: Form, loop: Loop) -> None:
    feed = Feed("chat", loop.call_soon, no_repair, Position(0, "e"))
    for offset in (1, 2, 3):
        feed.publish(Publication("chat", b"%d" % offset, "json", None, f"id{offset}", offset, "e"))

    class Session(Recorder):
        def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
            opening = form.opening(channel, start)
            assert opening is not None
            self.write(form.reply(opening, *(frame.encoded(form.codec) for frame in missed)))

    ann = Session("ann")
    since = Position(1, "e")
    assert feed.resume(ann, since, lines, start=Start(since, recovered=True)) == feed.position != START
    (batch,) = ann.batches
    assert batch == (
        b'{"subscribed": "chat", "recovered": true}\n'
        b'{"channel": "chat", "data": 2}\n{"channel": "chat", "data": 3}\n'
    )
    assert batch.channel is None
