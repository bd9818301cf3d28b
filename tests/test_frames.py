from __future__ import annotations

import pytest
import websockets.frames
from websockets.frames import Opcode

from hubbub.core.frames import FRAME_OVERHEAD, Batch, Frame
from hubbub.types import Kind


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
