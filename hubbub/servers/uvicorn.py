"""uvicorn's WebSocket protocol, with a way to write directly to clients.

``hubbub run`` uses it; so does ``uvicorn --ws hubbub.servers.uvicorn:HubProtocol``; and
:mod:`hubbub.servers.adoption` sets it in any other uvicorn. It behaves as uvicorn's own
``WebSocketsSansIOProtocol``, except that

* a scope extension gives a connection its :class:`~hubbub.transports.socket.SocketTransport`;
* with ``ws_per_message_deflate``, compressed messages are shared by all clients;
* a client that does not answer or does not read is disconnected, where uvicorn would wait for it;
* :mod:`hubbub.servers.limits` apply, and the hub's maximum message size once a connection has the socket;
* every handshake gets an answer (:mod:`hubbub.servers.handshake`), and no frame is handled before it;
* text that is not UTF-8 closes the connection with the right code.

The base class is not documented as public. This module is the only one that depends on it, and
``tests/servers/test_uvicorn.py`` runs uvicorn's own tests of it on this class.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import TimerHandle
from collections.abc import Callable
from random import random
from typing import Any

from starlette.websockets import WebSocket
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request

from hubbub.codes import CloseCode
from hubbub.servers.handshake import END, HandshakeRefused, read_request
from hubbub.servers.limits import (
    ABORT_AFTER,
    DRAIN_RATE,
    DRAIN_SHARE,
    EARLY_BYTES,
    FRAGMENT_BYTES,
    FRAGMENTS,
    MAX_HEAD,
    PING_LIMIT,
    READ_AHEAD_BYTES,
    READ_AHEAD_MESSAGES,
)
from hubbub.servers.middleware import name_of, unwrap
from hubbub.servers.permessage_deflate import SharedDeflate, SharedDeflateFactory
from hubbub.servers.receive_queue import ReceiveQueue
from hubbub.servers.send_path import log_queued_behind
from hubbub.transports.asgi import EXTENSION, ASGITransport, has_connection
from hubbub.transports.base import Transport
from hubbub.transports.socket import SocketTransport
from hubbub.transports.tcp import Progress, progress

# The only extension that is offered to clients.
_EXTENSIONS = (SharedDeflateFactory(),)

# Takes websockets' parser past the request head, which :mod:`hubbub.servers.handshake` parses.
_ANY_HEAD = b"GET / HTTP/1.1\r\n\r\n"

# The first byte of a pong: FIN and the opcode.
_PONG = b"\x8a"
# A ping from a client is masked; the pong to it is not.
_MASK_BYTES = 4

# Attributes of the base class and of websockets' connection that are used here, besides overridden methods.
_ATTRIBUTES = (
    *("close_sent", "close_timeout", "close_timer", "curr_msg_data_type", "disconnected", "frames"),
    *("handshake_complete", "handshake_initiated", "pending_ping_payload", "pong_timer", "queue"),
    *("read_paused", "writable"),
)
_PARSER_ATTRIBUTES = ("available_extensions", "close_sent", "max_message_size", "parser", "parser_exc")

# Shared by all connections that are not paused, since an event is as large as all other state that this class
# adds. It is never cleared.
_WRITABLE = asyncio.Event()
_WRITABLE.set()


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """The log of websockets, whose information ("connection open") uvicorn logs already."""

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


_QUIET = _Quiet(logging.getLogger("uvicorn.error"))


class HubProtocol(WebSocketsSansIOProtocol):
    """One client's connection to uvicorn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue = self._receive_queue = ReceiveQueue(self.loop)  # type: ignore[assignment]
        self.writable = _WRITABLE
        if self.config.ws_per_message_deflate:
            self.conn.available_extensions = _EXTENSIONS
        self.conn.logger = _QUIET
        # Handshake: data that arrived before it was answered (the head, then early frames), and the extension
        # that was negotiated.
        self._early = b""
        self._deflate: SharedDeflate | None = None
        # Reading: bytes of messages that arrived since the application had received all of them.
        self._ahead = 0
        # Writing: the transport on the direct path; and whether a hub's connection has the socket, so that
        # the hub disconnects a client that does not read.
        self._direct: SocketTransport | None = None
        self._has_connection = False
        # Called when a message is refused because it is too large.
        self._on_too_large: Callable[[], None] | None = None
        # Pings since the transport was last empty: their bytes, the answer to the latest one, and whether
        # reading is paused because there were too many.
        self._pings = 0
        self._pong: bytes | None = None
        self._is_flooded = False
        # Keepalive: how much the client had received when the pending ping was sent.
        self._progress: Progress | None = None
        # Closing.
        self._abort_timer: TimerHandle | None = None

    # Transport callbacks

    def connection_lost(self, exc: Exception | None) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        self._cut()
        # Break the reference cycle: the scope's extension references this protocol.
        self._direct = None
        self._on_too_large = None
        if hasattr(self, "scope"):
            self.scope["extensions"].pop(EXTENSION, None)
        super().connection_lost(exc)
        # Break two more: the parser is a generator that references the connection and the last frame, and so
        # does the traceback of its exception.
        self.conn.parser.close()
        self.conn.parser_exc = None

    def data_received(self, data: bytes) -> None:
        if self.disconnected:
            # Some event loops deliver data that was being read when the transport was closed.
            return
        if not self.handshake_complete:
            self._hold(data)
            return
        if self._deflate is not None:
            self._deflate.inflated = 0
        # Replaces the base class's method, which drops messages that came right before an invalid frame.
        self.conn.receive_data(data)
        self.handle_events()
        if self.conn.parser_exc is not None and not self.transport.is_closing():
            self.handle_parser_exception()

    def pause_writing(self) -> None:
        self.writable = asyncio.Event()
        if self._direct is not None:
            self._direct.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.writable = _WRITABLE
        self._pings = 0
        if self._pong is not None:
            pong, self._pong = self._pong, None
            if not self.close_sent and not self.transport.is_closing():
                self.transport.write(pong)  # which may pause again
        if self._is_flooded:
            self._is_flooded = False
            if not self.read_paused:
                self.transport.resume_reading()
        if self._direct is not None and self.writable is _WRITABLE:
            self._direct.resume()

    # Handshake

    def _hold(self, data: bytes) -> None:
        """Keep data that arrives before the handshake is answered.

        No frame is handled, and no ping answered, before the client has received its 101.
        """
        self._early += data
        if not self.handshake_initiated:
            head, end, rest = self._early.partition(END)
            if end or len(head) > MAX_HEAD:
                self._early = rest
                self._shake_hands(head + end)
        elif len(self._early) > EARLY_BYTES and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _shake_hands(self, head: bytes) -> None:
        try:
            request = read_request(head)
        except HandshakeRefused as exc:
            self.handshake_initiated = self.handshake_complete = self.close_sent = True
            response = self.conn.reject(exc.status, exc.text)
            response.headers.update(exc.headers)
            self.conn.send_response(response)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()
        else:
            self.conn.receive_data(_ANY_HEAD)
            self.conn.events_received()
            self.handle_connect(request)
        self._bound()

    def _take_early(self) -> None:
        early, self._early = self._early, b""
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        if early:
            self.data_received(early)

    def handle_connect(self, event: Request) -> None:
        # Some clients send an empty header, which websockets refuses with 400.
        protocols = event.headers.get_all("Sec-WebSocket-Protocol")
        if protocols and not any(value.strip() for value in protocols):
            del event.headers["Sec-WebSocket-Protocol"]
        super().handle_connect(event)
        for extension in self.conn.extensions:
            assert isinstance(extension, SharedDeflate)  # the only one that is offered
            self._deflate = extension

    # Frames

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
            return
        others = []
        for frame in self.conn.data_to_send():
            if frame.startswith(_PONG):
                self._pong = frame
                self._pings += len(frame) + _MASK_BYTES
            else:
                others.append(frame)
        if any(others):
            # The answer to a close frame, which the client has sent behind its pings.
            self._pong = None
            self.transport.write(b"".join(others))
        elif self._pings > PING_LIMIT and not self._is_flooded:
            self._is_flooded = True
            self.transport.pause_reading()

    def handle_cont(self, event: Frame) -> None:
        if self.close_sent:
            return
        size = self.conn.max_message_size
        if size is not None and len(self.frames) >= FRAGMENTS + size // FRAGMENT_BYTES:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {len(self.frames)} frames")
            self.frames = []
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf8(b"".join(self.frames)):
            self._fail(CloseCode.INVALID_DATA, "invalid UTF-8")
            return
        if self._direct is None or self.read_paused:
            super().send_receive_event_to_app()
            return
        self._ahead += sum([len(part) for part in self.frames])
        # The base class would pause reading after each message, unless it is paused already.
        self.read_paused = True
        super().send_receive_event_to_app()
        self.read_paused = self._ahead > READ_AHEAD_BYTES or len(self._receive_queue) > READ_AHEAD_MESSAGES
        if self.read_paused:
            self.transport.pause_reading()

    def handle_close(self, event: Any) -> None:
        self._cut()
        super().handle_close(event)
        self._bound()

    def handle_parser_exception(self) -> None:
        # If no close frame was sent before, this one is the parser's.
        close = None if self.close_sent else self.conn.close_sent
        if close is not None and close.code == CloseCode.MESSAGE_TOO_BIG and self._on_too_large is not None:
            self._on_too_large()
        self._cut()
        super().handle_parser_exception()
        self._bound()

    # Keepalive

    def send_keepalive_ping(self) -> None:
        self._progress = progress(self.transport.get_extra_info("socket"))
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if self._has_connection and not self.close_sent and self._is_excused():
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        self._cut()
        super().keepalive_timeout()
        self._bound()

    def _is_excused(self) -> bool:
        """Whether the client may be healthy although it has not answered the ping.

        That is so while its data are not read, or while it still receives data sent before the ping. A client
        that receives nothing at all is disconnected by the hub.
        """
        if self.read_paused or self._is_flooded or not self.writable.is_set():
            return True
        before, now = self._progress, progress(self.transport.get_extra_info("socket"))
        return before is not None and now is not None and now.is_taking and now.taken > before.taken

    # The application's side

    async def receive(self) -> Any:
        event = await self._receive_queue.get()
        if self._receive_queue.empty():
            self._ahead = 0
            if self.read_paused:
                self.read_paused = False
                if not self._is_flooded:
                    self.transport.resume_reading()
        return event

    async def run_asgi(self) -> None:
        self.scope["extensions"][EXTENSION] = {"transport": self._make_transport}
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        if not self.handshake_complete and self.transport.is_closing():
            # A shutdown has closed the connection before the application accepted it.
            raise ClientDisconnected
        if message["type"] == "websocket.close":
            # Nothing may follow a close frame (RFC 6455, section 5.5.1).
            self._cut()
        await super().send(message)
        if message["type"] == "websocket.accept":
            # The application has the headers in its scope; the parser would keep a second copy for as long as
            # the connection lives.
            self.request.headers.clear()
            self.response.headers.clear()
            if self.handshake_complete:
                self._take_early()
        if self.close_timer is not None and message["type"] == "websocket.close":
            # uvicorn would wait without a limit for a client that does not read.
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(self.close_timeout, self._give_up)

    def on_task_complete(self, task: Any) -> None:
        super().on_task_complete(task)
        self._bound()

    def _make_transport(
        self, websocket: WebSocket, max_message_size: int, on_too_large: Callable[[], None]
    ) -> Transport:
        if self._has_connection:
            raise has_connection()
        self._has_connection = True
        self._on_too_large = on_too_large
        # Messages that arrived before were under uvicorn's limit; the connection checks their size again.
        limit = self.conn.max_message_size
        self.conn.max_message_size = max_message_size if limit is None else min(limit, max_message_size)
        if self._is_watched(websocket):
            return ASGITransport(websocket)
        self._direct = SocketTransport(self.transport, websocket, compress=self._deflate is not None)
        if not self.writable.is_set():
            self._direct.pause()
        if self.close_sent or self.disconnected or self.transport.is_closing():
            self._direct.lost()
        return self._direct

    def _is_watched(self, websocket: WebSocket) -> bool:
        """Whether a middleware between the application and this protocol must see every message sent."""
        return False

    # Closing

    def shutdown(self) -> None:
        """Close the connection with 1012, "service restart", after a random delay.

        The maximum delay grows with the number of connections.
        """
        seconds = len(self.connections) / DRAIN_RATE
        if self.config.timeout_graceful_shutdown is not None:
            seconds = min(seconds, self.config.timeout_graceful_shutdown * DRAIN_SHARE)
        # No noticeable delay for a few connections, as during development.
        if seconds < 0.1:
            self._shutdown()
        else:
            self.loop.call_later(seconds * random(), self._shutdown)

    def _shutdown(self) -> None:
        if self.disconnected:
            return
        if self._direct is not None:
            self._direct.flush()
        self._cut()
        super().shutdown()
        self._bound()

    def _cut(self) -> None:
        if self._direct is not None:
            self._direct.lost()

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection because of data that the client has sent (RFC 6455, section 7.1.7)."""
        self._cut()
        # The parser is ahead: its unsent data answer later frames, and are discarded. No close frame must be
        # sent if the parser's own is sent already, behind a pong.
        unsent = self.conn.data_to_send()
        if unsent or self.conn.close_sent is None:
            close = Frame(Opcode.CLOSE, Close(code, reason).serialize())
            self.transport.write(close.serialize(mask=False))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.close()
        self._bound()

    def _give_up(self) -> None:
        self.transport.close()
        self._bound()

    def _bound(self) -> None:
        """Limit the time that a closing transport waits for its client to receive pending data."""
        if self._abort_timer is None and not self.disconnected and self.transport.is_closing():
            self._abort_timer = self.loop.call_later(ABORT_AFTER, self._abort)

    def _abort(self) -> None:
        self.transport.abort()


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class AdoptedProtocol(HubProtocol):
    """The protocol for a server that the user has not set up for Hubbub.

    A middleware that wraps ``send`` sees every message that is sent, as it would without Hubbub.
    """

    def _is_watched(self, websocket: WebSocket) -> bool:
        send = unwrap(getattr(websocket, "_send", None), "send")
        if send == self.send:
            return False
        log_queued_behind(name_of(send))
        return True


def missing(config: Config) -> list[str]:
    """Return the names that :class:`HubProtocol` uses and the installed uvicorn or websockets do not have.

    :param config: the settings of the running server.
    """
    theirs = WebSocketsSansIOProtocol(config=config, server_state=ServerState(), app_state={})
    methods = [
        name for name, value in vars(HubProtocol).items() if callable(value) and not name.startswith("_")
    ]
    names = [name for name in (*methods, *_ATTRIBUTES) if not hasattr(theirs, name)]
    names += [f"conn.{name}" for name in _PARSER_ATTRIBUTES if not hasattr(theirs.conn, name)]
    if not names:
        # The parser is a generator that references the connection.
        theirs.conn.parser.close()
    return names
