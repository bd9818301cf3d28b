"""uvicorn's WebSocket protocol, with a way to write to clients directly.

``hubbub run`` uses it; so does ``uvicorn --ws hubbub.servers.uvicorn:HubProtocol``; and
:mod:`hubbub.servers.adoption` has any other uvicorn use it. It is uvicorn's own ``WebSocketsSansIOProtocol``
in every respect, and adds: the scope extension by which a connection gets its
:class:`~hubbub.transports.socket.SocketTransport`; compression that all clients share, where
``ws_per_message_deflate`` is on; an end for peers that do not answer or do not read, where uvicorn would wait
for them; bounds for what peers send, the hub's instead of uvicorn's once a connection has the socket; an
answer to each handshake (:mod:`hubbub.servers.handshake`), and no look at frames before it; and the right
close code for text that is not UTF-8.

The base class is not documented as public. This module is the only one that knows it, and
``tests/servers/test_uvicorn.py`` runs uvicorn's own tests of it on this class.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import TimerHandle
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
from hubbub.servers.handshake import END, MAX_HEAD, HandshakeRefused, read_request
from hubbub.servers.middleware import name_of, unwrap
from hubbub.servers.permessage_deflate import SharedDeflate, SharedDeflateFactory
from hubbub.servers.receive_queue import ReceiveQueue
from hubbub.servers.send_path import announce
from hubbub.transports.asgi import EXTENSION, ASGITransport, has_connection
from hubbub.transports.base import Transport
from hubbub.transports.socket import SocketTransport
from hubbub.transports.tcp import Progress, progress

#: Seconds that a peer has to take what is on its way once its connection is being closed.
ABORT_AFTER = 5.0

#: Clients per second that are told to reconnect when the server shuts down. All at once, they would all
#: come back at once.
DRAIN_RATE = 500.0
#: How much of the time for a graceful shutdown that may take; handlers need some of it to end.
DRAIN_SHARE = 0.8

#: Messages and bytes that are read ahead of a hub's connection. uvicorn stops reading after each message, and
#: starts again when it is taken: two system calls for every message.
READ_AHEAD_MESSAGES = 64
READ_AHEAD_BYTES = 65_536

#: Bytes that a client may send before its handshake is answered; then reading pauses.
EARLY_BYTES = 65_536

_DEFLATE = (SharedDeflateFactory(),)

#: Takes websockets' parser past the head, which it need not see.
_ANY_HEAD = b"GET / HTTP/1.1\r\n\r\n"
#: Bytes of pings after which a client that takes no answers is not read any further. Of pings that come while
#: the transport holds anything, only the latest is answered (RFC 6455, section 5.5.3).
PING_LIMIT = 65_536

#: Frames that a message may come in: so many, and one more for so many bytes of the limit of its size. Each
#: costs memory of its own, an empty one too.
FRAGMENTS = 1024
FRAGMENT_BYTES = 16

_DEFLATE = (SharedDeflateFactory(),)

# The first byte of a pong: FIN and the opcode.
_PONG = b"\x8a"
# A ping on its way here has a mask, which its pong has not.
_MASK_BYTES = 4

# What of their instances is used here, apart from the methods that are overridden.
_ATTRIBUTES = (
    *("close_sent", "close_timeout", "close_timer", "curr_msg_data_type", "disconnected", "frames"),
    *("handshake_complete", "handshake_initiated", "pending_ping_payload", "pong_timer", "queue"),
    *("read_paused", "writable"),
)
_PARSER_ATTRIBUTES = ("available_extensions", "max_message_size", "parser", "parser_exc")

# Shared by all connections whose transport takes: an event is as large as all else that is added here. It is
# never cleared, and nobody waits for it.
_WRITABLE = asyncio.Event()
_WRITABLE.set()


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """websockets' log. What it reports as information ("connection open") is in uvicorn's lines already."""

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


_QUIET = _Quiet(logging.getLogger("uvicorn.error"))


class HubProtocol(WebSocketsSansIOProtocol):
    """One client's connection to uvicorn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue = self._inbox = ReceiveQueue(self.loop)  # type: ignore[assignment]
        self.writable = _WRITABLE
        if self.config.ws_per_message_deflate:
            self.conn.available_extensions = _DEFLATE
        self.conn.logger = _QUIET
        # What came before the handshake was answered: first the head, then frames, if the client is early.
        self._early = b""
        # Bytes of messages that have come since the application had taken all.
        self._ahead = 0
        # What was negotiated.
        self._deflate: SharedDeflate | None = None
        self._direct: SocketTransport | None = None
        # Whether a hub's connection has the socket, and lets go of a client that takes nothing.
        self._has_connection = False
        self._abort_timer: TimerHandle | None = None
        # Since the transport was last empty: bytes of pings, the answer to the latest, and whether there were
        # so many that nothing is read any more.
        self._pings = 0
        self._pong: bytes | None = None
        self._is_flooded = False
        # How far the peer had come when the ping under way was sent.
        self._progress: Progress | None = None

    # Transport callbacks

    def connection_lost(self, exc: Exception | None) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        self._cut()
        # The scope holds this protocol by its extension, and this protocol the scope.
        self._direct = None
        if hasattr(self, "scope"):
            self.scope["extensions"].pop(EXTENSION, None)
        super().connection_lost(exc)
        # The parser is a generator that holds what it belongs to, and the last frame; so does the traceback
        # of what it raised.
        self.conn.parser.close()
        self.conn.parser_exc = None

    def data_received(self, data: bytes) -> None:
        if self.disconnected:
            # Some event loops deliver what was being read when the transport was closed.
            return
        if not self.handshake_complete:
            self._hold(data)
            return
        if self._deflate is not None:
            self._deflate.inflated = 0
        # In place of the base class's, which forgets the messages that came right before a bad frame.
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

    # What ends a connection

    def shutdown(self) -> None:
        """Close with 1012, "service restart", within a while that grows with the number of clients."""
        seconds = len(self.connections) / DRAIN_RATE
        if self.config.timeout_graceful_shutdown is not None:
            seconds = min(seconds, self.config.timeout_graceful_shutdown * DRAIN_SHARE)
        # A few clients, as during development, are not worth a delay.
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

    def handle_close(self, event: Any) -> None:
        self._cut()
        super().handle_close(event)
        self._bound()

    def handle_parser_exception(self) -> None:
        self._cut()
        super().handle_parser_exception()
        self._bound()

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

    def on_task_complete(self, task: Any) -> None:
        super().on_task_complete(task)
        self._bound()

    # The handshake

    def _hold(self, data: bytes) -> None:
        """Keep what comes before the handshake is answered. A frame is not looked at, nor a ping answered,
        before the client has its 101."""
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

    # Events

    def handle_connect(self, event: Request) -> None:
        # Some clients send the header with nothing in it, for which websockets answers 400.
        protocols = event.headers.get_all("Sec-WebSocket-Protocol")
        if protocols and not any(value.strip() for value in protocols):
            del event.headers["Sec-WebSocket-Protocol"]
        super().handle_connect(event)
        # It is the only extension that is offered.
        for extension in self.conn.extensions:
            assert isinstance(extension, SharedDeflate)
            self._deflate = extension

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
            # A close frame: the peer has sent one behind its pings.
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
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, f"a message of {len(self.frames)} frames and more")
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
        # The base class pauses unless it thinks that it has.
        self.read_paused = True
        super().send_receive_event_to_app()
        self.read_paused = self._ahead > READ_AHEAD_BYTES or len(self._inbox) > READ_AHEAD_MESSAGES
        if self.read_paused:
            self.transport.pause_reading()

    # The application

    async def receive(self) -> Any:
        event = await self._inbox.get()
        if self._inbox.empty():
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
            # Closed by a shutdown, while the application was deciding.
            raise ClientDisconnected
        if message["type"] == "websocket.close":
            # Nothing may follow a close frame (RFC 6455, section 5.5.1).
            self._cut()
        await super().send(message)
        if message["type"] == "websocket.accept":
            # The scope has what the application may want of it; the parser keeps it for as long as it lives.
            self.request.headers.clear()
            self.response.headers.clear()
            if self.handshake_complete:
                self._take_early()
        if self.close_timer is not None and message["type"] == "websocket.close":
            # uvicorn would wait without an end for a peer that has stopped reading.
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(self.close_timeout, self._give_up)

    def _make_transport(self, websocket: WebSocket, max_message_size: int) -> Transport:
        if self._has_connection:
            raise has_connection()
        self._has_connection = True
        # What was on its way before that was under uvicorn's limit; the connection looks at it again.
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
        """Whether something between the application and this protocol is to see all that is sent."""
        return False

    def _is_excused(self) -> bool:
        """Whether a ping may be without an answer although the peer is well: what it sends is not read, or it
        has yet to take what was sent before the ping. If it takes nothing at all, the hub lets it go."""
        if self.read_paused or self._is_flooded or not self.writable.is_set():
            return True
        before, now = self._progress, progress(self.transport.get_extra_info("socket"))
        return before is not None and now is not None and now.is_taking and now.taken > before.taken

    def _cut(self) -> None:
        if self._direct is not None:
            self._direct.lost()

    def _fail(self, code: int, reason: str) -> None:
        """Close because of what the client has sent (RFC 6455, section 7.1.7)."""
        self._cut()
        # The parser is further on already: what it has to say is about what came after that. Only if its own
        # close frame is on its way, behind a pong, there is none to be sent.
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
        """Make sure that a transport which is closing does not wait longer than it may for its peer."""
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
    """The same where the user has not asked for it: a middleware that wraps ``send`` sees all that is sent,
    as it would without Hubbub."""

    def _is_watched(self, websocket: WebSocket) -> bool:
        send = unwrap(getattr(websocket, "_send", None), "send")
        if send == self.send:
            return False
        announce(
            f"Queued path behind {name_of(send)}, which wraps send and sees what Hubbub sends to clients."
        )
        return True


def missing(config: Config) -> list[str]:
    """What :class:`HubProtocol` needs of uvicorn and websockets, and their installed versions do not have.

    :param config: of the running server.
    """
    theirs = WebSocketsSansIOProtocol(config=config, server_state=ServerState(), app_state={})
    methods = [
        name for name, value in vars(HubProtocol).items() if callable(value) and not name.startswith("_")
    ]
    names = [name for name in (*methods, *_ATTRIBUTES) if not hasattr(theirs, name)]
    names += [f"conn.{name}" for name in _PARSER_ATTRIBUTES if not hasattr(theirs.conn, name)]
    if not names:
        # It holds what it belongs to.
        theirs.conn.parser.close()
    return names
