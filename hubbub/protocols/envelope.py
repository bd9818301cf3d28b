"""The envelope form: each publication in JSON that names its id, and its channel where a client has several.

First comes ``{"type": "subscribed", "channel": …, "id": …}``, then each publication as ``{"type":
"publication", "channel": …, "id": …, "data": …}``. Behind a door, which has one channel, there is no
``"channel"``.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from msgspec import DecodeError, Raw, json

from hubbub.core.forms import Codec, Form
from hubbub.core.frames import Message
from hubbub.core.publication import Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.messages import encode_message, opening_fields, position_id
from hubbub.protocols.websocket import WebSocketForm, WebSocketMessage


class EnvelopeCodec:
    """Wraps a publication in JSON: JSON as it is, text as a string, binary as base64.

    :param names_channel: whether messages name their channel.
    """

    def __init__(self, *, names_channel: bool) -> None:
        self._names_channel = names_channel

    def encode(self, publication: Publication) -> WebSocketMessage:
        head = encode_message(
            "publication",
            publication.channel if self._names_channel else None,
            {"id": position_id(publication.position)},
        )
        if publication.kind == "binary":
            payload = b'"base64":"' + b64encode(publication.data) + b'"'
        else:
            payload = b'"data":' + _as_json(publication)
        return WebSocketMessage("json", b"%b,%b}" % (head[:-1], payload), publication)

    def event(self, event: str, channel: str, fields: Mapping[str, Any]) -> WebSocketMessage:
        named = channel if self._names_channel else None
        return WebSocketMessage("json", encode_message(event, named, fields))


class Envelope(WebSocketForm):
    """Each publication in an envelope, in a WebSocket frame of its own.

    :param names_channel: whether envelopes name their channel.
    """

    reports_recovery = True

    def __init__(self, *, names_channel: bool) -> None:
        self.codec: Codec = EnvelopeCodec(names_channel=names_channel)

    def opening(self, channel: str, start: Start) -> Message:
        return self.codec.event("subscribed", channel, opening_fields(start))


#: For connections, which have any number of channels.
ENVELOPE: Form = Envelope(names_channel=True)
#: For doors, which have one channel.
DOOR_ENVELOPE: Form = Envelope(names_channel=False)


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
