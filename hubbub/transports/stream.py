"""Writing the body of a streaming HTTP response, on any server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from inspect import iscoroutinefunction
from typing import Any

from hubbub.protocols.event_stream import EventStreamBatch
from hubbub.transports.sending import SendingTransport


class StreamTransport(SendingTransport):
    """Writes batches as parts of the body of one HTTP response.

    The response starts with the first batch, so that a request can be refused with a status until then.

    :param send: of ASGI.
    :param start: the event ``http.response.start``.
    :param last: returns the last part of the body, for a close code and reason.
    :param abort: drops the connection of a client that does not read, if the server can do that.
    """

    __slots__ = ("_abort", "_last", "_send", "_start_event")

    def __init__(
        self,
        send: Callable[[Any], Awaitable[None]],
        start: dict[str, Any],
        last: Callable[[int, str], bytes],
        abort: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._send = send
        self._last = last
        self._abort = abort
        # Until it is sent, or about to be.
        self._start_event: dict[str, Any] | None = start
        # Another callable may return an awaitable that cannot be continued.
        self._needs_task = not iscoroutinefunction(send)

    @property
    def has_started(self) -> bool:
        """Whether the response has begun, so that it has a status."""
        return self._start_event is None

    def abort(self) -> None:
        super().abort()
        self._abort()

    def _events_of(self, batch: EventStreamBatch) -> Sequence[dict[str, Any]]:
        if self._start_event is None:
            return (batch.asgi_event,)
        start, self._start_event = self._start_event, None
        return (start, batch.asgi_event)

    def _send_of_now(self) -> Callable[[Any], Awaitable[None]]:
        return self._send

    async def _send_event(self, event: dict[str, Any]) -> None:
        await self._send(event)

    async def _send_close(self, code: int, reason: str) -> None:
        if self._start_event is not None:
            start, self._start_event = self._start_event, None
            await self._send(start)
        await self._send({"type": "http.response.body", "body": self._last(code, reason), "more_body": False})
