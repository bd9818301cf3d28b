from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hubbub.core.frames import FRAME_OVERHEAD, Batch, EventFrame, Frame, Message, Weight, last_position
from hubbub.core.publication import START, Position, Publication


def published(data: bytes = b"[1]", offset: int = 0) -> Publication:
    return Publication("chat", data, "json", None, "id", offset, "e" if offset else "")


class Codec:
    """Doubles payloads, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def encode(self, publication: Publication) -> Message:
        self.count += 1
        return Message(publication.data * 2, publication)

    def event(self, event: str, channel: str, fields: Mapping[str, Any]) -> Message:
        self.count += 1
        return Message(json.dumps([event, channel, fields]).encode())


class Identity:
    """Leaves payloads as they are."""

    def encode(self, publication: Publication) -> Message:
        return Message(publication.data, publication)

    def event(self, event: str, channel: str, fields: Mapping[str, Any]) -> Message:
        return Message(event.encode())


def test_a_message_costs_its_payload_and_a_fixed_charge() -> None:
    assert Message(b"x" * 1000).cost == 1000 + FRAME_OVERHEAD
    assert Message("🎉".encode()).cost == 4 + FRAME_OVERHEAD


def test_an_empty_message_is_not_free() -> None:
    assert Message(b"").cost == FRAME_OVERHEAD > 0


def test_frames_that_look_alike_are_two_frames() -> None:
    # A fan-out keeps the frames that exclude a connection in a set: the same text may be published twice.
    assert len({Frame(published()), Frame(published())}) == 2


def test_a_frame_is_encoded_once_in_each_codec() -> None:
    frame, codecs = Frame(published()), [Codec(), Codec(), Codec()]
    messages = [frame.encoded(codec) for codec in codecs]
    assert [frame.encoded(codec) for codec in codecs] == messages
    assert len(set(messages)) == 3
    assert [codec.count for codec in codecs] == [1, 1, 1]
    assert messages[0].data == b"[1][1]"
    assert messages[0].publication is frame.publication


def test_a_frame_counts_for_its_payload_and_for_its_encodings() -> None:
    frame = Frame(published(b"x" * 1000))
    assert frame.cost == 1000 + FRAME_OVERHEAD
    # The payload itself is not kept twice.
    frame.encoded(Identity())
    assert frame.cost == 1000 + FRAME_OVERHEAD
    codec = Codec()
    for _ in range(2):
        frame.encoded(codec)
    assert frame.cost == 3000 + 2 * FRAME_OVERHEAD


def test_a_weight_grows_with_its_frames() -> None:
    weight, frame = Weight(), Frame(published(b"x" * 1000))
    frame.weigh(weight)
    assert weight.cost == frame.cost
    frame.encoded(Codec())
    assert weight.cost == frame.cost == 3000 + 2 * FRAME_OVERHEAD
    frame.weigh(None)
    assert weight.cost == 0
    frame.encoded(Codec())
    assert weight.cost == 0


def test_an_event_is_encoded_once_in_each_codec() -> None:
    codec, frame = Codec(), EventFrame("chat", "join", {"entries": [1]})
    message = frame.encoded(codec)
    assert frame.encoded(codec) is message
    assert (codec.count, message.data) == (1, b'["join", "chat", {"entries": [1]}]')
    assert frame.encoded(Identity()).data == b"join"
    # It is no publication, and excludes no connection.
    assert message.publication is None
    assert (frame.publication.channel, frame.publication.exclude, frame.position) == ("chat", None, START)


def test_the_last_position_is_that_of_the_last_frame_that_has_one() -> None:
    frames = [Frame(published(offset=offset)) for offset in (1, 2, 0)]
    assert last_position(frames) == Position(2, "e")
    assert last_position(frames[2:]) == START


def test_a_batch_is_its_messages_on_the_wire() -> None:
    messages = [Message(b"1\n"), Message(b"2\n")]
    batch = Batch(messages, "chat", lossless=True)
    assert batch == b"1\n2\n"
    assert (batch.channel, batch.lossless, batch.messages) == ("chat", True, messages)
    newest = batch.newest()
    assert newest == b"2\n"
    assert (newest.channel, newest.lossless, newest.messages) == ("chat", True, messages[1:])


def test_a_batch_costs_what_its_messages_cost() -> None:
    assert Batch([Message(b"x" * size) for size in (0, 1, 500)], "chat").cost == 501 + 3 * FRAME_OVERHEAD


def test_a_batch_without_a_channel_is_sent_directly() -> None:
    assert Batch([Message(b"Hello")]).channel is None
