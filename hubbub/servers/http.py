"""uvicorn's HTTP protocol, with limits on a client until its request has arrived.

``hubbub run`` uses it; so does ``uvicorn --http hubbub.servers.http:HubHTTPProtocol``. It behaves as
uvicorn's own ``HttpToolsProtocol``, except that

* a request head must arrive within a time, and has a maximum size;
* reading pauses while requests wait for the answer to an earlier one;
* white space around a header value is not part of the value;
* bytes behind the head of a WebSocket request are kept, and such a request in HTTP/1.0 is refused.

The base class is not documented as public. This module is the only one that depends on it, and
``tests/servers/test_uvicorn.py`` runs uvicorn's own tests of it on this class.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Sized
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hubbub.core.throttle import Throttle
from hubbub.servers.limits import HEAD_TIMEOUT, LINGER, MAX_HEAD

_too_large_throttle = Throttle()


class HeadTooLarge(Exception):
    """A request head, or the trailers of a request, are larger than ``MAX_HEAD``."""


class PipelineFlow(FlowControl):
    """Flow control that does not read while requests wait in the pipeline.

    uvicorn's own resumes reading after each answer, thousands of small requests at a time, and queues them
    all.

    :param transport: the connection's transport.
    :param pipeline: the waiting requests.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class HubHTTPProtocol(HttpToolsProtocol):
    """One client's connection to uvicorn, until it becomes a WebSocket."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The size of this message's head and trailers: bytes that the parser has reported in callbacks, and
        # bytes fed to it since, at a point where it may buffer them without a callback.
        self._size = 0
        self._unreported = 0
        self._may_be_unreported = False
        # Progress of this message.
        self._is_in_message = False
        self._is_in_head = False
        self._is_refused = False
        # Runs while a head is awaited.
        self._deadline: TimerHandle | None = None

    # Transport callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = PipelineFlow(transport, self.pipeline)
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Replaces the base class's method, which drops the bytes behind the head of an upgrade.
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        self._unreported += len(data)
        try:
            self.parser.feed_data(data)
            if self._may_be_unreported and self._unreported > MAX_HEAD:
                raise HeadTooLarge
        except httptools.HttpParserUpgrade as exc:
            if self._should_upgrade():
                self._stop_deadline()
                self._upgrade(data[exc.args[0] :])
            else:
                self._unsupported_upgrade_warning()
        except (httptools.HttpParserError, HeadTooLarge) as exc:
            self._refuse(is_too_large=HeadTooLarge in (type(exc), type(exc.__context__)))
        else:
            if self._is_head_awaited():
                self._start_deadline()
            elif self._is_in_message and self.parser.should_upgrade() and self._should_upgrade():
                # An upgrade with a body: it is refused, so there is no need to wait for the body.
                self._upgrade(b"")

    # Parser callbacks

    def on_message_begin(self) -> None:
        self._is_in_message = self._is_in_head = self._may_be_unreported = True
        self._size = self._unreported = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        # RFC 9110, section 5.5: white space around a value is not part of it.
        super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        self._is_in_head = self._may_be_unreported = False
        self._stop_deadline()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        # The chunk's data follow, or the trailers after the last chunk.
        self._may_be_unreported = True
        self._unreported = 0

    def on_body(self, body: bytes) -> None:
        self._may_be_unreported = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            # This may have taken the last waiting request from the pipeline.
            self.flow.resume_reading()

    # Internal

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_HEAD:
            raise HeadTooLarge

    def _is_head_awaited(self) -> bool:
        """Whether a head has begun, or bytes have stopped the keep-alive timeout without beginning a head."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return self._is_in_head or (is_answered and not self._is_in_message)

    def _upgrade(self, rest: bytes) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # An earlier request is not answered yet. Its answer would be read as frames, and its handler
            # would not notice a disconnect.
            self.transport.close()
            return
        if self.scope["http_version"] == "1.0":
            # RFC 6455, section 4.2.1: "An HTTP/1.1 or higher GET request".
            self.send_400_response("A WebSocket needs HTTP/1.1.")
            return
        self.handle_websocket_upgrade()
        # Break the reference cycle of parser and protocol.
        self.parser = None  # type: ignore[assignment]
        if rest:
            # The client may have sent its first frames before the answer.
            self.transport.get_protocol().data_received(rest)  # type: ignore[attr-defined]

    def _refuse(self, *, is_too_large: bool) -> None:
        self._stop_deadline()
        if not is_too_large:
            self.logger.debug("Invalid HTTP request received.")
        elif (more := _too_large_throttle.admit()) is not None:
            self.logger.warning("Refused a request head of more than %d bytes with 431.%s", MAX_HEAD, more)
        if self.cycle is not None and not self.cycle.response_complete:
            # The earlier request gets no answer, or no further part of it.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.pipeline or self.cycle.response_started:
                self.transport.close()
                return
        if not is_too_large:
            self.send_400_response("Invalid HTTP request received.")
            return
        self._is_refused = True
        self._answer_too_large()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
            self._deadline = self.loop.call_later(LINGER, self.transport.abort)
        else:
            self.transport.close()

    def _answer_too_large(self) -> None:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        body = f"The request head has more than {MAX_HEAD} bytes.".encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode()), *map(b": ".join, headers)]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT, self._give_up)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.close()
