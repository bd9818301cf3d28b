"""Forms: how publications are written to a subscriber.

A publication is encoded at most once in each form, and only if a subscriber has that form. Subscribers of one
form are handed the same batch.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Protocol

from msgspec import DecodeError, Raw, json

from hubbub.core.frames import Batch, Frame
from hubbub.core.publication import START, Position, Publication


class Form(Protocol):
    """How publications are written to a subscriber."""

    def encode(self, frame: Frame) -> Frame:
        """``frame``, which is of a publication, in this form."""

    def batch(self, frames: Sequence[Frame], channel: str, *, has_positions: bool) -> Batch:
        """``frames``, which are of publications, in this form."""

    def opening(self, channel: str, position: Position, recovered: bool | None) -> Frame | None:
        """What a subscriber is told before the first publication; ``None`` if it is told nothing.

        :param position: where the subscriber begins.
        :param recovered: of a subscriber that comes back, whether everything since its position follows.
        """


class Plain:
    """A publication is a frame of its own, as it was published."""

    def encode(self, frame: Frame) -> Frame:
        return frame

    def batch(self, frames: Sequence[Frame], channel: str, *, has_positions: bool) -> Batch:
        return Batch(frames, channel, has_positions=has_positions)

    def opening(self, channel: str, position: Position, recovered: bool | None) -> None:
        return None


class Envelope:
    """A publication is wrapped in JSON that names its channel and its id: ``{"type": "publication", …}``.
    Before the first comes ``{"type": "subscribed", …}``."""

    def encode(self, frame: Frame) -> Frame:
        if frame.envelope is None:
            assert frame.publication is not None
            frame.envelope = Frame("json", _envelope(frame.publication), frame.publication)
        return frame.envelope

    def batch(self, frames: Sequence[Frame], channel: str, *, has_positions: bool) -> Batch:
        return Batch([self.encode(frame) for frame in frames], channel, has_positions=has_positions)

    def opening(self, channel: str, position: Position, recovered: bool | None) -> Frame:
        opening: dict[str, object] = {"type": "subscribed", "channel": channel, "id": _id(position)}
        if recovered is not None:
            opening["recovered"] = recovered
        return Frame("json", json.encode(opening))


PLAIN: Form = Plain()
ENVELOPE: Form = Envelope()


def _id(position: Position) -> str | None:
    """What clients know ``position`` by; ``None`` in a channel without history, which has no positions."""
    return None if position == START else str(position)


def _envelope(publication: Publication) -> bytes:
    head = {"type": "publication", "channel": publication.channel, "id": _id(publication.position)}
    if publication.kind == "binary":
        payload = b'"base64":"' + b64encode(publication.data) + b'"'
    else:
        payload = b'"data":' + _as_json(publication)
    return b"%b,%b}" % (json.encode(head)[:-1], payload)


def _as_json(publication: Publication) -> bytes:
    """JSON as it is, text as a JSON string. Not only this library publishes: what is called JSON and is none
    would break the envelope, so it is taken for text."""
    if publication.kind == "json" and _is_json(publication.data):
        return publication.data
    return json.encode(publication.data.decode(errors="replace"))


_decode_raw = json.Decoder(Raw).decode


def _is_json(data: bytes) -> bool:
    try:
        # The decoder does not look into strings for what is not UTF-8.
        _decode_raw(data.decode())
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
