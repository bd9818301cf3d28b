from __future__ import annotations

import json
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.core.publication import START, Position, Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.envelope import DOOR_ENVELOPE, ENVELOPE
from hubbub.protocols.plain import DOOR_PLAIN, PLAIN
from hubbub.protocols.websocket import WebSocketMessage
from hubbub.types import Kind


def published(data: bytes, kind: Kind = "json", channel: str = "chat") -> Publication:
    return Publication(channel, data, kind, None, "id", 18, "c0ffee42")


def envelope(publication: Publication) -> WebSocketMessage:
    message = ENVELOPE.codec.encode(publication)
    assert isinstance(message, WebSocketMessage)
    return message


def test_an_envelope_has_type_channel_id_and_data() -> None:
    message = envelope(published(b'{"type": "said",  "n": 1.0}'))
    assert message.kind == "json"
    # JSON is embedded as it is.
    assert message.data == (
        b'{"type":"publication","channel":"chat","id":"18:c0ffee42","data":{"type": "said",  "n": 1.0}}'
    )


def test_text_is_a_string_and_binary_is_base64() -> None:
    for data in (b'{"json": "in text"}', 'quotes " and \u2028 and 🙂'.encode()):
        message = json.loads(envelope(published(data, "text")).data)
        assert message["data"] == data.decode()
    message = json.loads(envelope(published(b"\x00\xff", "binary")).data)
    assert b64decode(message["base64"]) == b"\x00\xff"
    assert "data" not in message


@given(data=st.binary() | st.text().map(str.encode), kind=st.sampled_from(["json", "text", "binary"]))
def test_the_envelope_of_any_publication_is_one_json_value(data: bytes, kind: Kind) -> None:
    message = json.loads(envelope(published(data, kind)).data.decode())
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
def test_a_payload_that_is_declared_as_json_and_is_not_becomes_text(garbage: bytes) -> None:
    """Other programs may publish it, by SQL for example."""
    message = json.loads(envelope(published(garbage)).data)
    assert message["data"] == garbage.decode(errors="replace")


@given(channel=st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_name_of_a_channel_is_in_the_envelope(channel: str) -> None:
    message = json.loads(envelope(published(b"1", channel=channel)).data)
    assert message["channel"] == channel


@pytest.mark.parametrize(
    ("position", "recovered", "expected"),
    [
        (Position(17, "ab"), None, {"id": "17:ab"}),
        (Position(17, "ab"), True, {"id": "17:ab", "recovered": True}),
        (START, False, {"id": None, "recovered": False}),
    ],
)
def test_an_opening_names_the_position_at_which_a_subscriber_begins(
    position: Position, recovered: bool | None, expected: dict[str, object]
) -> None:
    opening = ENVELOPE.opening("chat", Start(position, recovered))
    assert opening is not None
    assert json.loads(opening.data) == {"type": "subscribed", "channel": "chat", **expected}
    assert PLAIN.opening("chat", Start(position, recovered)) is None


def test_behind_a_door_no_message_names_the_channel() -> None:
    encode = DOOR_ENVELOPE.codec.encode
    assert encode(published(b"1")).data == b'{"type":"publication","id":"18:c0ffee42","data":1}'
    assert encode(published(b"\x00", "binary")).data == (
        b'{"type":"publication","id":"18:c0ffee42","base64":"AA=="}'
    )
    no_history = Publication("chat", b"hi", "text")
    assert encode(no_history).data == b'{"type":"publication","id":null,"data":"hi"}'
    opening = DOOR_ENVELOPE.opening("chat", Start(Position(17, "c0ffee42")))
    assert opening is not None
    assert opening.data == b'{"type":"subscribed","id":"17:c0ffee42"}'
    opening = DOOR_ENVELOPE.opening("chat", Start(Position(17, "ab"), recovered=False, snapshot=b'{"n":1}'))
    assert opening is not None
    assert opening.data == b'{"type":"subscribed","id":"17:ab","recovered":false,"data":{"n":1}}'
    assert DOOR_PLAIN.opening("chat", Start(Position(17, "ab"))) is None
    assert DOOR_PLAIN.codec.encode(published(b"1")).data == b"1"


def test_joins_and_leaves_name_the_channel_where_a_client_may_have_several() -> None:
    for form, expected in (
        (PLAIN, b'{"type":"join","channel":"chat","entries":[]}'),
        (ENVELOPE, b'{"type":"join","channel":"chat","entries":[]}'),
        (DOOR_PLAIN, b'{"type":"join","entries":[]}'),
        (DOOR_ENVELOPE, b'{"type":"join","entries":[]}'),
    ):
        message = form.codec.event("join", "chat", {"entries": []})
        assert isinstance(message, WebSocketMessage)
        assert (message.kind, message.data, message.publication) == ("json", expected, None)
