from __future__ import annotations

from unittest.mock import Mock

import pytest
import websockets.frames
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from hubbub.core.compression import THRESHOLD, WINDOW_BITS, deflate
from hubbub.protocols import websocket
from hubbub.protocols.websocket import WebSocketBatch, WebSocketMessage
from hubbub.types import Kind

KINDS: tuple[Kind, ...] = ("text", "json", "binary")


@pytest.mark.parametrize(
    ("kind", "data", "event"),
    [
        ("text", "Grüße 🎉".encode(), {"type": "websocket.send", "text": "Grüße 🎉"}),
        ("text", b"", {"type": "websocket.send", "text": ""}),
        ("json", b'{"a":1}', {"type": "websocket.send", "text": '{"a":1}'}),
        ("binary", b"\x00\xff", {"type": "websocket.send", "bytes": b"\x00\xff"}),
        ("binary", b"", {"type": "websocket.send", "bytes": b""}),
    ],
)
def test_the_event_is_a_send_event_of_asgi(kind: Kind, data: bytes, event: dict[str, object]) -> None:
    assert WebSocketMessage(kind, data).event == event


@pytest.mark.parametrize("kind", ["text", "json", "binary"])
def test_the_event_is_made_once_and_shared(kind: Kind) -> None:
    message = WebSocketMessage(kind, b"[]")
    assert message.event is message.event


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("kind", ["text", "json", "binary"])
def test_a_batch_is_its_bytes_on_the_wire(kind: Kind, length: int) -> None:
    data = b"x" * length
    opcode = Opcode.BINARY if kind == "binary" else Opcode.TEXT
    on_the_wire = websockets.frames.Frame(opcode, data).serialize(mask=False)
    assert WebSocketBatch((WebSocketMessage(kind, data),)) == on_the_wire
    assert (
        WebSocketBatch((WebSocketMessage(kind, data), WebSocketMessage(kind, data)), "chat")
        == on_the_wire * 2
    )


def data_of(kind: Kind) -> st.SearchStrategy[bytes]:
    """Messages below and above the threshold, such as shrink and such as do not."""
    any_bytes = st.binary() if kind == "binary" else st.text().map(str.encode)
    return st.builds(lambda data, times: data * times, any_bytes, st.sampled_from([1, 2, 50, 3000]))


some_messages = st.lists(
    st.sampled_from(KINDS).flatmap(lambda kind: data_of(kind).map(lambda data: WebSocketMessage(kind, data))),
    min_size=1,
)


@given(
    batch=some_messages.map(WebSocketBatch), forgets=st.booleans(), chunk=st.sampled_from([1, 7, 100_000_000])
)
def test_a_client_that_negotiated_compression_reads_the_same_messages(
    batch: WebSocketBatch, forgets: bool, chunk: int
) -> None:
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)
    # A client that keeps its window from message to message, as it may, reads them as well.
    client.extensions = [PerMessageDeflate(forgets, True, WINDOW_BITS, 15)]
    for start in range(0, len(batch.compressed), max(chunk, len(batch.compressed) // 100)):
        client.receive_data(batch.compressed[start : start + max(chunk, len(batch.compressed) // 100)])
    assert client.parser_exc is None
    heard = [(event.opcode, event.data) for event in client.events_received()]  # type: ignore[union-attr]
    assert heard == [
        (Opcode.BINARY if message.kind == "binary" else Opcode.TEXT, message.data)
        for message in batch.messages
    ]
    assert len(batch.compressed) <= len(batch)


def test_a_message_is_compressed_once_and_only_for_clients_that_negotiated_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Mock(side_effect=deflate)
    monkeypatch.setattr(websocket, "deflate", counted)
    first, second = WebSocketMessage("text", b"a" * 1000), WebSocketMessage("binary", b"b")
    batch = WebSocketBatch([first, second], "chat")
    assert bytes(batch)
    assert counted.call_count == 0
    assert batch.compressed == batch.compressed
    # A subscriber that is excluded, or gets only the newest, is sent other batches of the same messages.
    assert WebSocketBatch([second]).compressed + WebSocketBatch([first]).compressed
    assert counted.call_count == 2


@pytest.mark.parametrize("kind", KINDS)
def test_messages_that_are_not_worth_it_go_out_as_they_are(kind: Kind) -> None:
    batch = WebSocketBatch(
        [WebSocketMessage(kind, b"x" * (THRESHOLD - 1)), WebSocketMessage(kind, bytes(range(32, 127)))]
    )
    assert batch.compressed == batch
