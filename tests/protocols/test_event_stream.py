"""Events of a stream, byte for byte, and as a parser of the HTML standard reads them."""

from __future__ import annotations

import json
import re
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.core.frames import Frame
from hubbub.core.publication import START, Position, Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.event_stream import EVENT_STREAM, HEARTBEAT, EventStreamBatch
from hubbub.types import Kind
from tests.events import parse

TOP = Position(18, "c0ffee42")


def published(data: bytes, kind: Kind = "json", position: Position = TOP) -> Publication:
    return Publication("chat", data, kind, None, "id", *position)


def written(publication: Publication) -> bytes:
    return EVENT_STREAM.codec.encode(publication).data


def test_a_publication_is_an_event_without_a_name() -> None:
    message = EVENT_STREAM.codec.encode(published(b'{"type":"said","user":"ann","text":"hi"}'))
    assert message.data == b'id: 18:c0ffee42\ndata: {"type":"said","user":"ann","text":"hi"}\n\n'
    assert message.publication is not None


def test_a_channel_without_history_has_no_ids() -> None:
    assert written(published(b"hi", "text", START)) == b"data: hi\n\n"
    assert written(published(b"\x00", "binary", START)) == b"event: binary\ndata: AA==\n\n"


def test_each_line_of_text_is_a_line_of_data() -> None:
    text = b"1\n2\r3\r\n4\n\n id: 5"
    expected = b"id: 18:c0ffee42\ndata: 1\ndata: 2\ndata: 3\ndata: 4\ndata: \ndata:  id: 5\n\n"
    assert written(published(text, "text")) == expected
    # An EventSource that gets no data line dispatches no event.
    assert written(published(b"", "text")) == b"id: 18:c0ffee42\ndata: \n\n"
    # JSON may be published with line ends between its tokens, by SQL for example.
    assert parse(written(published(b'{\n"a":1\r\n}')))[0].data == '{\n"a":1\n}'


def test_binary_is_base64() -> None:
    assert written(published(b"\x00\xff", "binary")) == b"event: binary\nid: 18:c0ffee42\ndata: AP8=\n\n"


@given(text=st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\r\n: "))))
def test_any_text_is_one_event(text: str) -> None:
    # What the standard makes of line ends.
    expected = re.sub("\r\n|\r", "\n", text)
    (event,) = parse(written(published(text.encode(), "text")))
    assert (event.name, event.id, event.data) == ("message", "18:c0ffee42", expected)


@given(data=st.binary(), kind=st.sampled_from(["text", "json", "binary"]))
def test_no_payload_forges_an_event(data: bytes, kind: Kind) -> None:
    (event,) = parse(written(published(data, kind)))
    assert event.id == "18:c0ffee42"
    if kind == "binary":
        assert (event.name, b64decode(event.data)) == ("binary", data)
    else:
        assert event.name == "message"


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (
            Start(Position(17, "ab")),
            'event: subscribed\nid: 17:ab\ndata: {"type":"subscribed","id":"17:ab"}\n\n',
        ),
        (
            Start(Position(17, "ab"), recovered=True),
            'event: subscribed\nid: 17:ab\ndata: {"type":"subscribed","id":"17:ab","recovered":true}\n\n',
        ),
        (
            Start(Position(17, "ab"), recovered=False, snapshot=b'{"n":[1]}'),
            (
                "event: subscribed\nid: 17:ab\n"
                'data: {"type":"subscribed","id":"17:ab","recovered":false,"data":{"n":[1]}}\n\n'
            ),
        ),
        (
            Start(START, recovered=False),
            'event: subscribed\ndata: {"type":"subscribed","id":null,"recovered":false}\n\n',
        ),
    ],
)
def test_the_opening_has_the_id_from_which_a_browser_resumes(start: Start, expected: str) -> None:
    opening = EVENT_STREAM.opening("chat", start)
    assert opening is not None
    assert opening.data.decode() == "retry: 2000\n" + expected


def test_other_events_have_a_name_and_no_id() -> None:
    message = EVENT_STREAM.codec.event("expiring", "chat", {"seconds": 25})
    assert message.data == b'event: expiring\ndata: {"type":"expiring","seconds":25}\n\n'
    # They leave the id of the last publication to the browser.
    assert message.publication is None


def test_a_heartbeat_is_a_comment() -> None:
    assert HEARTBEAT == b":\n\n"
    assert parse(HEARTBEAT) == []


def test_a_batch_is_one_part_of_the_body_for_all_subscribers() -> None:
    frames = [Frame(published(b"%d" % number, position=Position(number, "e"))) for number in (1, 2)]
    batch = EVENT_STREAM.batch(frames, "chat", lossless=True)
    assert isinstance(batch, EventStreamBatch)
    assert batch == b"id: 1:e\ndata: 1\n\nid: 2:e\ndata: 2\n\n"
    assert batch.asgi_event is batch.asgi_event
    assert batch.asgi_event == {"type": "http.response.body", "body": bytes(batch), "more_body": True}
    # Servers in other languages may take nothing but bytes.
    assert type(batch.asgi_event["body"]) is bytes
    assert (batch.channel, batch.lossless) == ("chat", True)
    assert EVENT_STREAM.reply(*batch.messages) == batch
    assert json.loads(parse(bytes(batch))[1].data) == 2
