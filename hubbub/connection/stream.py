"""Stream: one client's streaming response, subscribed to one channel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from hubbub.codes import CloseCode
from hubbub.connection.ending import Ending
from hubbub.connection.handle import Handle
from hubbub.connection.limits import Limits
from hubbub.connection.subscriptions import presence_entry
from hubbub.core.forms import Form
from hubbub.core.frames import Frame, Message
from hubbub.core.outbox import Outbox
from hubbub.core.publication import Position
from hubbub.core.subscriber import Start
from hubbub.node.node import Node
from hubbub.node.snapshots import Snapshot
from hubbub.protocols.event_stream import EVENT_STREAM, HEARTBEAT
from hubbub.servers.response import abort_response
from hubbub.servers.stopping import Stopping
from hubbub.transports.stream import StreamTransport
from hubbub.transports.writer import Writer
from hubbub.types import JoinLeave

logger = logging.getLogger(__name__)

#: Seconds between two heartbeats.
HEARTBEAT_INTERVAL = 15.0

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx would collect the events of a response before it passes them on.
    (b"x-accel-buffering", b"no"),
)


class Departure(Ending):
    """Waits until the client of a request has left, or the connection has ended.

    :param receive: of ASGI.
    """

    __slots__ = ("_receive",)

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self._receive = receive

    async def wait(self) -> None:
        """Wait for the end. The body of the request is dropped."""
        while self.ended is None:
            event = await self._unless_ended(self._receive())
            if event is not None and event["type"] == "http.disconnect":
                self.client_left = True
                self.end(CloseCode.ABNORMAL, "")


class StreamHandle(Handle):
    """The handle of a stream, which also writes heartbeats."""

    __slots__ = ("_beat_at", "_has_joined")

    def __init__(self, node: Node, connection_id: str, ending: Ending, limits: Limits) -> None:
        super().__init__(node, connection_id, ending, limits)
        # Until then, the request can be refused with a status.
        self._has_joined = False
        # When the last heartbeat was written, by the node's clock.
        self._beat_at: float | None = None

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        super().joined(channel, form, start, missed)
        self._has_joined = True

    def tick(self, now: float) -> None:
        """Write a heartbeat every 15 seconds, unless other data are on their way."""
        super().tick(now)
        if not self._has_joined:
            return
        if self._beat_at is None:
            self._beat_at = now
        elif now - self._beat_at >= HEARTBEAT_INTERVAL:
            self._beat_at = now
            if not self.backlog:
                self._send(Message(HEARTBEAT))

    def send_event(self, event: str, channel: str, fields: Mapping[str, Any]) -> None:
        """Send the client an event that is not a publication, such as ``expiring``."""
        if self._has_joined:
            self._send(EVENT_STREAM.codec.event(event, channel, fields))

    def _send(self, message: Message) -> None:
        if self.writer is not None:
            self.writer.send(EVENT_STREAM.reply(message))


class Stream:
    """One client's event stream: a response that does not end, subscribed to one channel.

    ::

        async with Stream(node, receive, send, limits, stopping, user="ann") as stream:
            await stream.join("room:5")
            await stream.departure()

    To its node it is a connection like one of a WebSocket: bounded in memory, disconnected when it is slow,
    and ended by :meth:`hubbub.Hub.disconnect`. The response starts when it has joined: an exception before
    that leaves the request unanswered, and continues.

    :param node: the node that has the connection.
    :param receive: of ASGI.
    :param send: of ASGI.
    :param limits: of the connection.
    :param stopping: ends the stream when the server begins to stop.
    :param user: the user, if there is one.
    :param headers: more headers of the response.
    """

    def __init__(
        self,
        node: Node,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
        limits: Limits,
        stopping: Stopping,
        *,
        user: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        #: Unique among all connections of the hub.
        self.id: str = uuid4().hex
        self._node = node
        self._limits = limits
        self._departure = Departure(receive)
        #: The stream as its node sees it.
        self.handle = StreamHandle(node, self.id, self._departure, limits)
        self.handle.user = user
        more = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        start = {"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *more]}
        self._transport = StreamTransport(send, start, last_event, lambda: abort_response(receive))
        outbox = Outbox(limits.outbox_limit, limits.slow_consumer)
        self._writer = self.handle.writer = Writer(self.id, self._transport, outbox, self.handle)
        self._stopping = stopping
        self._until_stopping = ExitStack()
        self._channel: str | None = None

    async def __aenter__(self) -> Self:
        self._node.add(self.handle)
        restart = partial(self.handle.end, CloseCode.SERVICE_RESTART, "restart")
        self._until_stopping.enter_context(self._stopping.calling(restart))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Leave the channel and complete the response, as far as the client takes it."""
        # Nothing is awaited before this, so that cancellation cannot come in between.
        self._until_stopping.close()
        if self._channel is not None:
            self._node.leave(self._channel, self._writer)
        try:
            return await self._finish(exc)
        finally:
            self._node.remove(self.handle)
            self.handle.release()

    async def join(
        self,
        channel: str,
        *,
        since: Position | None = None,
        history: int = 0,
        snapshot: Snapshot | None = None,
        info: object = None,
        join_leave: JoinLeave | None = None,
    ) -> None:
        """Subscribe to ``channel``; called once. See :meth:`hubbub.Connection.subscribe`.

        :param snapshot: reads the state with which the client begins; see :meth:`hubbub.node.node.Node.join`.
        :param info: shown in the presence of a channel that has one.
        """
        # Presence is the channel's property here, not the caller's wish.
        shown = info if self._node.has_presence(channel) else None
        entry = presence_entry(self._node, channel, self.id, self.handle.user, shown, join_leave)
        self._channel = channel
        await self._node.join(
            channel,
            self._writer,
            since,
            history,
            EVENT_STREAM,
            snapshot=snapshot,
            entry=entry,
            join_leave=join_leave,
            is_wanted=lambda: self._departure.ended is None,
        )

    async def departure(self) -> None:
        """Wait until the client has left, or the connection has ended."""
        await self._departure.wait()

    # Internal

    async def _finish(self, exc: BaseException | None) -> bool:
        """Complete the response as ``exc`` demands; returns whether ``exc`` ends here."""
        if isinstance(exc, asyncio.CancelledError):
            await self._writer.ended(0)
            return False
        if exc is not None:
            if not self._transport.has_started:
                self._writer.cut()
                # It may have been about to start, because the connection has ended meanwhile.
                await self._transport.stopped()
            if not self._transport.has_started:
                return False
            # There is a status already, so there can be no other.
            logger.error("An event stream of %r failed; closing it.", self._channel, exc_info=exc)
            self.handle.end(CloseCode.INTERNAL_ERROR, "internal error")
        await self._writer.ended(0 if self._departure.client_left else self._limits.close_timeout)
        return True


def last_event(code: int, reason: str) -> bytes:
    """Return the last event of a stream that ends with ``code``.

    There is none if the server restarts: the browser reconnects, to another worker.
    """
    if code == CloseCode.SERVICE_RESTART:
        return b""
    return EVENT_STREAM.codec.event("close", "", {"code": code, "reason": reason}).data
