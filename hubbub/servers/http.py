"""uvicorn's HTTP protocol, with limits on what a client may do before its request is there.

``hubbub run`` uses it; so does ``uvicorn --http hubbub.servers.http:HubHTTPProtocol``. It is uvicorn's own
``HttpToolsProtocol`` in every respect, and adds five things: a time within which a request head has to come;
a limit on its size; no reading while requests wait for the answer to an earlier one; white space around
header values, which is not part of them; and for WebSockets, that the bytes behind the head are kept, and
that a request in HTTP/1.0 is refused.

The base class is not documented as public. This module is the only one that knows it, and
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
from hubbub.servers.handshake import MAX_HEAD

#: Seconds within which the head of a request has to be there: the first one from the moment at which the
#: connection was made, any other from its first byte on. In between, uvicorn's keep-alive timeout counts.
HEAD_TIMEOUT = 10.0

#: Seconds for which a client whose request head was too large may go on sending it. Closed at once, its
#: connection would be reset, and the answer be lost with it (:rfc:`9112#section-9.6`).
LINGER = 2.0

_too_large = Throttle()


class HeadTooLarge(Exception):
    """A request head, or the trailers of a request, are beyond the limit."""


class PipelineFlow(FlowControl):
    """Flow control that does not read while requests wait in the pipeline. uvicorn's own reads again after
    each answer, thousands of small requests at a time, and keeps them all.

    :param pipeline: the requests that wait, empty while there are none.
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
        # Bytes of target, headers and trailers of this message, as far as the parser has told; and those that
        # have come since, in a place where the parser may keep them to itself.
        self._size = 0
        self._untold = 0
        self._may_be_untold = False
        self._is_in_message = False
        self._is_in_head = False
        self._is_refused = False
        # Runs while a head is waited for.
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
        # In place of the base class's, which drops what follows the head of an upgrade.
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        self._untold += len(data)
        try:
            self.parser.feed_data(data)
            if self._may_be_untold and self._untold > MAX_HEAD:
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
                # One with a body, for which there is no need to wait: it is refused.
                self._upgrade(b"")

    # Parser callbacks

    def on_message_begin(self) -> None:
        self._is_in_message = self._is_in_head = self._may_be_untold = True
        self._size = self._untold = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        # RFC 9110, section 5.5: white space around a value is not part of it.
        super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        self._is_in_head = self._may_be_untold = False
        self._stop_deadline()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        # Either the chunk's data follow, or, after the last one, the trailers.
        self._may_be_untold = True
        self._untold = 0

    def on_body(self, body: bytes) -> None:
        self._may_be_untold = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            # The last one that waited may have been taken from the pipeline.
            self.flow.resume_reading()

    # Internal

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_HEAD:
            raise HeadTooLarge

    def _is_head_awaited(self) -> bool:
        """Whether a head has begun, or bytes have come that stopped the keep-alive timeout and begin none."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return self._is_in_head or (is_answered and not self._is_in_message)

    def _upgrade(self, rest: bytes) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # Behind a request that is not answered yet: the answer would be taken for frames, and its handler
            # would not learn that the client has gone.
            self.transport.close()
            return
        if self.scope["http_version"] == "1.0":
            # RFC 6455, section 4.2.1: "An HTTP/1.1 or higher GET request".
            self.send_400_response("A WebSocket needs HTTP/1.1.")
            return
        self.handle_websocket_upgrade()
        # It holds this protocol, and this protocol holds it.
        self.parser = None  # type: ignore[assignment]
        if rest:
            # The client may have sent its first frames before it had an answer.
            self.transport.get_protocol().data_received(rest)  # type: ignore[attr-defined]

    def _refuse(self, *, is_too_large: bool) -> None:
        self._stop_deadline()
        if not is_too_large:
            self.logger.debug("Invalid HTTP request received.")
        elif (more := _too_large.admit()) is not None:
            self.logger.warning("Refused a request head of more than %d bytes with 431.%s", MAX_HEAD, more)
        if self.cycle is not None and not self.cycle.response_complete:
            # The request before this one is not to be answered any more, or no further.
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
        body = f"The limit of a request head is {MAX_HEAD} bytes.".encode()
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
