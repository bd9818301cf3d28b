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

from hubbub.core import frames
from hubbub.core.compression import THRESHOLD, WINDOW_BITS, deflate
from hubbub.core.frames import FRAME_OVERHEAD, Batch, Frame
from hubbub.types import Kind

KINDS: tuple[Kind, ...] = ("text", "json", "binary")


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("text", "Grüße 🎉".encode(), {"type": "websocket.send", "text": "Grüße 🎉"}),
        ("text", b"", {"type": "websocket.send", "text": ""}),
        ("json", b'{"a":1}', {"type": "websocket.send", "text": '{"a":1}'}),
        ("binary", b"\x00\xff", {"type": "websocket.send", "bytes": b"\x00\xff"}),
        ("binary", b"", {"type": "websocket.send", "bytes": b""}),
    ],
)
def test_the_message_is_a_send_event_of_asgi(kind: Kind, data: bytes, message: dict[str, object]) -> None:
    assert Frame(kind, data).message == message


@pytest.mark.parametrize("kind", ["text", "json", "binary"])
def test_the_message_is_made_once_and_shared(kind: Kind) -> None:
    frame = Frame(kind, b"[]")
    assert frame.message is frame.message


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("kind", ["text", "json", "binary"])
def test_a_batch_is_its_bytes_on_the_wire(kind: Kind, length: int) -> None:
    data = b"x" * length
    opcode = Opcode.BINARY if kind == "binary" else Opcode.TEXT
    on_the_wire = websockets.frames.Frame(opcode, data).serialize(mask=False)
    assert Batch((Frame(kind, data),)) == on_the_wire
    assert Batch((Frame(kind, data), Frame(kind, data)), "chat") == on_the_wire * 2


def test_a_frame_costs_its_payload_and_a_fixed_charge() -> None:
    assert Frame("binary", b"x" * 1000).cost == 1000 + FRAME_OVERHEAD
    assert Frame("text", "🎉".encode()).cost == 4 + FRAME_OVERHEAD


def test_an_empty_frame_is_not_free() -> None:
    assert Frame("text", b"").cost == FRAME_OVERHEAD > 0


def test_frames_that_look_alike_are_two_frames() -> None:
    # A feed keeps the frames that someone is not to get in a set: the same words may be said twice.
    assert len({Frame("text", b"Hello"), Frame("text", b"Hello")}) == 2


def test_a_batch_costs_what_its_frames_cost() -> None:
    frames = [Frame("text", b"x" * size) for size in (0, 1, 500)]
    batch = Batch(frames, "chat")
    assert batch.cost == 501 + 3 * FRAME_OVERHEAD
    assert list(batch.frames) == frames
    assert batch.channel == "chat"


def test_a_batch_without_a_channel_was_sent_directly() -> None:
    assert Batch([Frame("text", b"Hello")]).channel is None


def data_of(kind: Kind) -> st.SearchStrategy[bytes]:
    """Messages below and above the threshold, such as shrink and such as do not."""
    any_bytes = st.binary() if kind == "binary" else st.text().map(str.encode)
    return st.builds(lambda data, times: data * times, any_bytes, st.sampled_from([1, 2, 50, 3000]))


some_frames = st.lists(
    st.sampled_from(KINDS).flatmap(lambda kind: data_of(kind).map(lambda data: Frame(kind, data))), min_size=1
)


@given(batch=some_frames.map(Batch), forgets=st.booleans(), chunk=st.sampled_from([1, 7, 100_000_000]))
def test_a_client_that_negotiated_compression_reads_the_same(batch: Batch, forgets: bool, chunk: int) -> None:
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)
    # One that keeps its window from message to message, as it may, understands it as well.
    client.extensions = [PerMessageDeflate(forgets, True, WINDOW_BITS, 15)]
    for start in range(0, len(batch.compressed), max(chunk, len(batch.compressed) // 100)):
        client.receive_data(batch.compressed[start : start + max(chunk, len(batch.compressed) // 100)])
    assert client.parser_exc is None
    heard = [(event.opcode, event.data) for event in client.events_received()]  # type: ignore[union-attr]
    assert heard == [
        (Opcode.BINARY if frame.kind == "binary" else Opcode.TEXT, frame.data) for frame in batch.frames
    ]
    assert len(batch.compressed) <= len(batch)


def test_a_frame_is_compressed_once_and_only_for_those_who_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Mock(side_effect=deflate)
    monkeypatch.setattr(frames, "deflate", counted)
    first, second = Frame("text", b"a" * 1000), Frame("binary", b"b")
    batch = Batch([first, second], "chat")
    assert bytes(batch)
    assert counted.call_count == 0
    assert batch.compressed == batch.compressed
    # What one member is not to get, or gets in place of an older batch, is another batch of the same frames.
    assert Batch([second]).compressed + Batch([first]).compressed
    assert counted.call_count == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_worth_it_goes_out_as_it_is(kind: Kind) -> None:
    batch = Batch([Frame(kind, b"x" * (THRESHOLD - 1)), Frame(kind, bytes(range(32, 127)))])
    assert batch.compressed == batch
