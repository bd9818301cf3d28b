from __future__ import annotations

import json
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.core.feed import Feed, frame_of
from hubbub.core.forms import ENVELOPE, PLAIN
from hubbub.core.publication import START, Position, Publication
from hubbub.types import Kind
from tests.core.test_feed import Loop, Recorder, no_repair


def published(data: bytes, kind: Kind = "json", channel: str = "chat") -> Publication:
    return Publication(channel, data, kind, None, "id", 18, "c0ffee42")


def test_an_envelope_has_type_channel_id_and_data() -> None:
    frame = ENVELOPE.encode(frame_of(published(b'{"type": "said",  "n": 1.0}')))
    assert frame.kind == "json"
    # JSON is embedded as it is.
    assert frame.data == (
        b'{"type":"publication","channel":"chat","id":"18:c0ffee42","data":{"type": "said",  "n": 1.0}}'
    )


def test_text_is_a_string_and_binary_is_base64() -> None:
    for data in (b'{"json": "in text"}', 'quotes " and \u2028 and 🙂'.encode()):
        message = json.loads(ENVELOPE.encode(frame_of(published(data, "text"))).data)
        assert message["data"] == data.decode()
    message = json.loads(ENVELOPE.encode(frame_of(published(b"\x00\xff", "binary"))).data)
    assert b64decode(message["base64"]) == b"\x00\xff"
    assert "data" not in message


@given(data=st.binary() | st.text().map(str.encode), kind=st.sampled_from(["json", "text", "binary"]))
def test_whatever_was_published_the_envelope_is_one_json_value(data: bytes, kind: Kind) -> None:
    message = json.loads(ENVELOPE.encode(frame_of(published(data, kind))).data.decode())
    assert set(message) <= {"type", "channel", "id", "data", "base64"}
    assert (message["type"], message["id"]) == ("publication", "18:c0ffee42")


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b'{"a":1',
        b"1,2",
        b'1},{"type":"subscribed"',
        b'"\xff"',
        b"NaN",
        b"01",
        b'"a\nb"',
        b"[" * 100_000,
    ],
)
def test_what_is_called_json_and_is_none_is_text(garbage: bytes) -> None:
    """It may come from other publishers, or from SQL."""
    message = json.loads(ENVELOPE.encode(frame_of(published(garbage))).data)
    assert message["data"] == garbage.decode(errors="replace")


@given(channel=st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_name_of_a_channel_is_in_the_envelope(channel: str) -> None:
    message = json.loads(ENVELOPE.encode(frame_of(published(b"1", channel=channel))).data)
    assert message["channel"] == channel


@pytest.mark.parametrize(
    ("position", "recovered", "expected"),
    [
        (Position(17, "ab"), None, {"id": "17:ab"}),
        (Position(17, "ab"), True, {"id": "17:ab", "recovered": True}),
        (START, False, {"id": None, "recovered": False}),
    ],
)
def test_an_opening_says_where_a_subscriber_begins(
    position: Position, recovered: bool | None, expected: dict[str, object]
) -> None:
    opening = ENVELOPE.opening("chat", position, recovered)
    assert opening is not None
    assert json.loads(opening.data) == {"type": "subscribed", "channel": "chat", **expected}
    assert PLAIN.opening("chat", position, recovered) is None


def test_a_publication_is_encoded_once_in_each_form_that_a_member_has() -> None:
    loop = Loop()
    feed = Feed("chat", loop.call_soon, no_repair)
    ann, ben, cid, dan = (Recorder(name) for name in ("ann", "ben", "cid", "dan"))
    feed.join(ann)
    feed.join(ben)
    first = feed.publish(Publication("chat", b"1", "json"))
    loop.turn()
    assert first is not None
    # No member has asked for it.
    assert first.envelope is None
    feed.join(cid, ENVELOPE)
    feed.join(dan, ENVELOPE)
    frame = feed.publish(Publication("chat", b"2", "json"))
    excluding = feed.publish(Publication("chat", b"3", "json", "cid"))
    assert frame is not None
    assert excluding is not None
    loop.turn()
    assert ann.batches[-1] is ben.batches[-1]
    assert ann.frames[1:] == [frame, excluding]
    assert dan.frames == [frame.envelope, excluding.envelope]
    assert cid.frames == [frame.envelope]
    assert len(feed) == 4


def test_a_member_has_one_form() -> None:
    loop = Loop()
    feed = Feed("chat", loop.call_soon, no_repair)
    ann = Recorder("ann")
    feed.join(ann)
    feed.join(ann, ENVELOPE)
    assert len(feed) == 1
    feed.publish(Publication("chat", b"1", "json"))
    loop.turn()
    assert len(ann.frames) == 1
    feed.leave(ann)
    assert len(feed) == 0
