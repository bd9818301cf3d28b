"""The event stream form: Server-Sent Events, as ``new EventSource(url)`` reads them.

The format is that of the HTML standard, section 9.2 ("Server-sent events"): an event is a few lines and an
empty one. Publications have no event name, so that ``onmessage`` gets them; their id, which the browser
sends back as ``Last-Event-ID`` when it reconnects, is the id of their position.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from hubbub.core.forms import Codec, Form
from hubbub.core.frames import Batch, Frame, Message
from hubbub.core.publication import Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.messages import encode_message, opening_fields, position_id

#: Milliseconds after which a browser reconnects when the stream has ended.
RETRY = 2000

#: A line that browsers ignore. It keeps proxies from closing a stream that is silent, and finds out whether
#: the client is still there.
HEARTBEAT = b":\n\n"

# Each of the three ends a line of the stream, so a browser must not find one within a line of a payload.
_LINE_END = re.compile(rb"\r\n|\r|\n")


class EventStreamCodec:
    """Writes a publication as one event: JSON and text as they are, binary as base64."""

    def encode(self, publication: Publication) -> Message:
        id_ = position_id(publication.position)
        if publication.kind == "binary":
            return Message(_event("binary", id_, b64encode(publication.data)), publication)
        return Message(_event(None, id_, publication.data), publication)

    def event(self, event: str, channel: str, fields: Mapping[str, Any]) -> Message:
        return Message(_event(event, None, encode_message(event, None, fields)))


class EventStreamBatch(Batch):
    """Events as one part of the body of a response."""

    @cached_property
    def asgi_event(self) -> dict[str, Any]:
        """The ``http.response.body`` event of ASGI, shared by all subscribers."""
        return {"type": "http.response.body", "body": bytes(self), "more_body": True}


class EventStream:
    """Each publication as an event of a stream."""

    codec: Codec = EventStreamCodec()
    reports_recovery = True

    def batch(self, frames: Sequence[Frame], channel: str, *, lossless: bool) -> EventStreamBatch:
        codec = self.codec
        return EventStreamBatch([frame.encoded(codec) for frame in frames], channel, lossless=lossless)

    def reply(self, *messages: Message) -> EventStreamBatch:
        return EventStreamBatch(messages)

    def opening(self, channel: str, start: Start) -> Message:
        """Return the first event: with its id, a client that gets nothing else resumes from here."""
        data = encode_message("subscribed", None, opening_fields(start))
        return Message(b"retry: %d\n%b" % (RETRY, _event("subscribed", position_id(start.position), data)))


EVENT_STREAM: Form = EventStream()


def _event(name: str | None, id_: str | None, data: bytes) -> bytes:
    lines = [] if name is None else [b"event: " + name.encode()]
    if id_ is not None:
        lines.append(b"id: " + id_.encode())
    lines += [b"data: " + line for line in _LINE_END.split(data)]
    return b"\n".join(lines) + b"\n\n"
