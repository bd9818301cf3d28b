"""The envelope form: each publication in JSON that names its channel and its id.

First comes ``{"type": "subscribed", "channel": …, "id": …}``, then each publication as ``{"type":
"publication", "channel": …, "id": …, "data": …}``.
"""

from __future__ import annotations

from base64 import b64encode

from msgspec import DecodeError, Raw, json

from hubbub.core.forms import Codec, Form
from hubbub.core.publication import START, Position, Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.websocket import WebSocketForm, WebSocketMessage


class EnvelopeCodec:
    """Wraps a publication in JSON: JSON as it is, text as a string, binary as base64."""

    def encode(self, publication: Publication) -> WebSocketMessage:
        return WebSocketMessage("json", _envelope(publication), publication)


class Envelope(WebSocketForm):
    """Each publication in an envelope, in a WebSocket frame of its own."""

    codec: Codec = EnvelopeCodec()
    reports_recovery = True

    def opening(self, channel: str, start: Start) -> WebSocketMessage:
        opening: dict[str, object] = {"type": "subscribed", "channel": channel, "id": _id(start.position)}
        if start.recovered is not None:
            opening["recovered"] = start.recovered
        return WebSocketMessage("json", json.encode(opening))


ENVELOPE: Form = Envelope()


def _id(position: Position) -> str | None:
    """Return the id of ``position``; ``None`` in a channel without history, which has no positions."""
    return None if position == START else str(position)


def _envelope(publication: Publication) -> bytes:
    head = {"type": "publication", "channel": publication.channel, "id": _id(publication.position)}
    if publication.kind == "binary":
        payload = b'"base64":"' + b64encode(publication.data) + b'"'
    else:
        payload = b'"data":' + _as_json(publication)
    return b"%b,%b}" % (json.encode(head)[:-1], payload)


def _as_json(publication: Publication) -> bytes:
    """Return the payload as JSON: JSON as it is, text as a JSON string.

    Other programs publish as well, by SQL for example. A payload that is declared as JSON and is not would
    break the envelope, so it is written as text.
    """
    if publication.kind == "json" and _is_json(publication.data):
        return publication.data
    return json.encode(publication.data.decode(errors="replace"))


_decode_raw = json.Decoder(Raw).decode


def _is_json(data: bytes) -> bool:
    try:
        # The decoder does not check strings for invalid UTF-8, so that is done first.
        _decode_raw(data.decode())
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
