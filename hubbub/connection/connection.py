"""A connection: one client's socket, in any number of channels."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, get_args, overload
from uuid import uuid4

from pydantic import TypeAdapter
from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from hubbub.codes import CloseCode, ErrorCode, check_code, clip_reason
from hubbub.connection.closing import close_for, has_websocket_handler, is_disconnect
from hubbub.connection.decoding import as_bytes, as_json, as_model, as_text, exceeds
from hubbub.core.forms import Form
from hubbub.core.frames import Frame
from hubbub.core.outbox import Outbox
from hubbub.core.publication import START, Position, check_channel, check_position, encode, encode_json
from hubbub.core.subscriber import Start
from hubbub.core.throttle import Throttle
from hubbub.exceptions import InvalidChannel, InvalidData, InvalidMessage
from hubbub.node.node import Node
from hubbub.node.presence import encode_entry
from hubbub.protocols.envelope import ENVELOPE
from hubbub.protocols.plain import PLAIN
from hubbub.protocols.websocket import WebSocketMessage
from hubbub.security.hosts import Hosts
from hubbub.security.logs import is_reported
from hubbub.security.origins import is_allowed
from hubbub.transports.asgi import claim, open_transport
from hubbub.transports.writer import Writer
from hubbub.types import JoinLeave, PresenceEntry, SlowConsumer, User, check_utf8, user_id

logger = logging.getLogger("hubbub.connection.connection")

T = TypeVar("T")

_foreign_pages, _foreign_hosts = Throttle(), Throttle()


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """What ``Hub(...)`` says about all its connections; the parameters are described there."""

    allow_origins: frozenset[str]
    hosts: Hosts | None
    max_message_size: int
    outbox_limit: int
    slow_consumer: SlowConsumer
    send_timeout: float
    close_timeout: float


class Connection:
    """One client's socket.

    Made by ``hub.connection(websocket)`` and used as ``async with``. Entering the block checks the page's
    origin and accepts the socket. Leaving it, however that happens, leaves every channel and closes the
    socket; see :meth:`__aexit__` for the codes.
    """

    def __init__(
        self,
        node: Node,
        websocket: WebSocket,
        options: ConnectionOptions,
        *,
        user: User | None = None,
        subprotocol: str | None = None,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
    ) -> None:
        #: Unique among all connections of the hub.
        self.id: str = uuid4().hex
        self.user = user
        #: The Starlette object, for everything that is not here.
        self.websocket = websocket

        self._node = node
        self._options = options
        self._accept = (subprotocol, headers)

        # From the inside out: the way out exists between enter and exit.
        self._writer: Writer | None = None
        # Each with the form in which the client gets it.
        self._channels: dict[str, Form] = {}
        # Those of them that a task is waiting to get into.
        self._joining: dict[str, asyncio.Event] = {}

        # The way in.
        self._receiving: asyncio.Task[Any] | None = None
        self._iterating = 0
        # Set when there is nothing more to receive: the code and reason with which it ended.
        self._ended: tuple[int, str] | None = None
        # Whether the client ended it, so that there is nobody to close for.
        self._client_left = False
        # When the writer found the client gone, while the handler has not been told yet.
        self._gone_since: float | None = None
        # The task whose block has ended. Weakly: it may have failed, and then holds this by its traceback.
        self._left_by: weakref.ref[asyncio.Task[Any]] | None = None

    @property
    def user(self) -> str | None:
        """Whoever the application says this is. An ``int`` or a ``UUID`` that is assigned becomes its
        ``str``.

        :raises TypeError: something else is assigned.
        """
        return self._user

    @user.setter
    def user(self, user: User | None) -> None:
        self._user = None if user is None else user_id(user)

    def __repr__(self) -> str:
        return f"<Connection {self.id} user={self.user!r} channels={len(self._channels)}>"

    # The block

    async def __aenter__(self) -> Self:
        if self._writer is not None:
            raise RuntimeError("Expected a new connection, but this one has been entered before.")
        self._check_host()
        self._check_origin()
        claim(self.websocket)
        if self.websocket.application_state is WebSocketState.CONNECTING:
            await self.websocket.accept(*self._accept)
        outbox = Outbox(self._options.outbox_limit, self._options.slow_consumer)
        transport = open_transport(self.websocket, self._options.max_message_size)
        self._writer = Writer(self.id, transport, outbox, self)
        self._node.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Leave every channel and close the socket.

        ====================================  =====================================================
        the block ended by                    the client sees
        ====================================  =====================================================
        its end, ``return``, ``break``        1000
        the client leaving                    its own close; ``WebSocketDisconnect`` ends here
        ``WebSocketException``                its code and reason
        ``HTTPException``                     1008 if its status is 4xx, 1011 if it is 5xx
        a message nobody asked for            1003 or 1007
        cancellation                          1001
        anything else                         1011; or what the application's exception handler does,
                                              if one with a ``WebSocket`` parameter is registered
        ====================================  =====================================================

        Exceptions go on to FastAPI, which logs or handles them; only a client's leaving is no error.
        """
        self._leave_all()
        try:
            if exc is None or is_disconnect(exc):
                await self._finish(CloseCode.NORMAL)
                return True
            if isinstance(exc, asyncio.CancelledError):
                await self._finish(CloseCode.GOING_AWAY, "cancelled")
            elif has_websocket_handler(self.websocket, exc):
                await self._finish()
            elif refused := close_for(exc):
                await self._finish(refused.code, refused.reason)
                # FastAPI's handler for it closes as well, which would be an error by now.
                self.websocket.close = _is_closed  # type: ignore[method-assign]
                if not isinstance(exc, WebSocketException):
                    raise refused from exc
            else:
                await self._finish(CloseCode.INTERNAL_ERROR, "internal error")
        finally:
            self._node.remove(self)
            if (task := asyncio.current_task()) is not None:
                self._left_by = weakref.ref(task)
        return False

    # Channels

    async def subscribe(
        self,
        channel: str,
        *,
        since: Position | str | None = None,
        history: int = 0,
        positions: bool = False,
        info: object = None,
        join_leave: JoinLeave | None = None,
    ) -> Position:
        """Get what is published to ``channel`` from now on. Subscribing twice is subscribing once.

        A client that was here before can go on where it was: with ``positions=True`` it is told the id of
        each publication, keeps the last, and gives it back as ``since``. It gets everything published after
        that, in pieces as it takes them, then what is new, without a gap; or it is told that this is not
        possible. What this connection was excluded from is left out; a new connection gets it.

        When later on the engine has lost something that the client should have got, its connection is closed
        with 3010, "insufficient state", so that it comes back.

        In a channel that is declared with ``presence=True``, others can see that this connection is there,
        with its ``user`` and ``info``, from before it gets the first publication.

        :param since: get first what was published after this position; also as its id, ``str(position)``.
        :param history: where ``since`` is ``None``: get first this many of the last publications, or as many
            as there are.
        :param positions: wrap what the client gets in envelopes of JSON. First comes
            ``{"type": "subscribed", "channel": …, "id": …}``, with ``since`` also ``"recovered"``: whether
            everything follows. Then each publication is ``{"type": "publication", "channel": …, "id": …,
            "data": …}``: JSON as it is, text as a string, binary as ``"base64"`` instead of ``"data"``. In
            a channel without history, ``id`` is ``null``.
        :param info: what others are to know, written as JSON; at most some 4,000 bytes of it.
        :param join_leave: tell the client who is in the channel, once, as
            ``{"type": "presence", "channel": …, "entries": [{"connection": …, "user": …, "info": …}]}``, and
            then who comes and who leaves, as the same with the type ``"join"`` or ``"leave"``: each of its
            ``"connections"``, or each of its ``"users"`` once, in however many connections.
        :return: the channel's position at the moment in which the client joined it, after it was sent what it
            had missed.
        :raises InvalidChannel: not a name a channel can have; or ``history``, or ``since`` without
            ``positions``, is given for a channel that is not declared with a history; or ``info`` or
            ``join_leave`` for one without presence.
        :raises InvalidData: ``info`` cannot be written as JSON, or is too long.
        :raises InvalidPosition: ``since`` is not the id of a position.
        :raises Unrecoverable: not everything since ``since`` is there; the client is not subscribed. Not with
            ``positions``: there the client is told ``"recovered": false``, and gets what is new.
        :raises EngineUnavailable: the engine cannot be reached; the client is not subscribed.
        :raises TypeError: ``history`` is no whole number.
        :raises ValueError: ``history`` is negative, or the client has subscribed already, with another
            ``positions``.
        """
        since = None if since is None else check_position(since)
        self._node.check_history(check_channel(channel), since, history, has_positions=positions)
        writer = self._entered()
        entry = self._presence_entry(channel, info, join_leave)
        form = ENVELOPE if positions else PLAIN
        while (joining := self._joining.get(channel)) is not None:
            # Another task is about to subscribe to it as well: whatever comes of that.
            await joining.wait()
        if self._ended is not None:
            return START
        if channel in self._channels:
            if self._channels[channel] is not form:
                raise ValueError(
                    f"Expected positions={not positions} as in the present subscription to {channel!r}, but "
                    f"got {positions!r}. Unsubscribe first."
                )
            return self._node.position(channel)
        self._channels[channel] = form
        joined = self._joining[channel] = asyncio.Event()
        try:
            # Another task may unsubscribe meanwhile, or the block may end.
            return await self._node.join(
                channel,
                writer,
                since,
                history,
                form,
                entry=entry,
                join_leave=join_leave,
                is_wanted=lambda: channel in self._channels,
            )
        except BaseException:
            self._channels.pop(channel, None)
            raise
        finally:
            del self._joining[channel]
            joined.set()

    async def unsubscribe(self, channel: str) -> None:
        """Get nothing more of what is published to ``channel``. What was published before still arrives."""
        if channel in self._channels:
            del self._channels[channel]
            self._node.leave(channel, self._entered())

    # Sending

    async def send_text(self, data: str) -> None:
        """Send a text frame; see :meth:`send`."""
        _check_type(data, str)
        await self._write(WebSocketMessage(*encode(data)))

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary frame; see :meth:`send`."""
        _check_type(data, bytes, bytearray, memoryview)
        await self._write(WebSocketMessage(*encode(data)))

    async def send_json(self, data: Any) -> None:
        """Send ``data`` as JSON in a text frame, also if it is a ``str``; see :meth:`send`."""
        await self._write(WebSocketMessage("json", encode_json(data)))

    async def send(self, data: object) -> None:
        """Send to this client only: ``str`` as text, ``bytes`` as binary, anything else as JSON.

        Waits while the client is behind by more than its outbox holds, so that a handler cannot run ahead
        of a slow client. In an ``iter_*`` loop, what is sent to a client that has gone is dropped: the
        loop ends by itself once everything the client had sent is handled.

        A handler that only sends learns from this that its client has gone, on servers whose own ``send``
        tells (uvicorn does; hypercorn and granian drop silently). To learn it everywhere, receive as well.

        :raises InvalidData: ``data`` cannot be written as JSON.
        :raises WebSocketDisconnect: the client has gone, and no ``iter_*`` loop is there to end.
        """
        await self._write(WebSocketMessage(*encode(data)))

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Send what waits, then close the socket. The handler's loop ends, wherever it is.

        :param code: 1000 to 1014 as in :rfc:`6455#section-7.4.1`, or 3000 to 4999.
        :param reason: cut to the 123 bytes that fit into a close frame.
        :raises ValueError: ``code`` is not one that may be sent.
        """
        check_code(code)
        writer = self._entered()
        self.end(code, reason)
        await writer.ended(self._options.close_timeout)

    # Receiving

    async def receive(self) -> str | bytes:
        """The next message: ``str`` from a text frame, ``bytes`` from a binary one.

        :raises WebSocketDisconnect: the client has gone, or the connection was closed from this side. Left
            uncaught, it ends the block without being an error.
        """
        self._entered()
        if self._ended is not None:
            raise WebSocketDisconnect(*self._ended)
        if self._receiving is not None:
            raise RuntimeError("Expected one task at a time to receive, but another one is waiting already.")
        task = self._receiving = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        try:
            message = await self.websocket.receive()
        except asyncio.CancelledError:
            # _interrupt() ends the wait the way asyncio.timeout() does: by a cancellation that is taken back
            # here, so that it costs nothing where it does not happen.
            if self._ended is not None and task.uncancel() <= cancelling:
                raise WebSocketDisconnect(*self._ended) from None
            raise
        finally:
            self._receiving = None
        if message["type"] == "websocket.disconnect":
            self._client_left = True
            self._ended = (message.get("code", CloseCode.NORMAL), message.get("reason") or "")
            raise WebSocketDisconnect(*self._ended)
        text: str | None = message.get("text")
        data: str | bytes = message["bytes"] if text is None else text
        limit = self._options.max_message_size
        if exceeds(data, limit):
            await self.close(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {limit} bytes")
            raise WebSocketDisconnect(CloseCode.MESSAGE_TOO_BIG)
        return data

    async def receive_text(self) -> str:
        """The next message, which is to be a text frame.

        :raises InvalidMessage: it is a binary frame. Left uncaught, it closes the connection with 1003.
        :raises WebSocketDisconnect: see :meth:`receive`.
        """
        return as_text(await self.receive())

    async def receive_bytes(self) -> bytes:
        """The next message, which is to be a binary frame.

        :raises InvalidMessage: it is a text frame. Left uncaught, it closes the connection with 1003.
        :raises WebSocketDisconnect: see :meth:`receive`.
        """
        return as_bytes(await self.receive())

    async def receive_json(self) -> Any:
        """The next message, which is to be JSON, in a text or a binary frame.

        :raises InvalidMessage: it is not JSON. Left uncaught, it closes the connection with 1007.
        :raises WebSocketDisconnect: see :meth:`receive`.
        """
        return as_json(await self.receive())

    async def receive_message(self, model: type[T] | TypeAdapter[T]) -> T:
        """The next message, which is to be JSON that fits ``model``; see :meth:`iter_messages`.

        :raises InvalidMessage: it does not fit. Left uncaught, it closes the connection with 1007.
        :raises WebSocketDisconnect: see :meth:`receive`.
        """
        return as_model(model)(await self.receive())

    def iter_text(self) -> AsyncIterator[str]:
        """Text messages, until the client goes. A binary frame is answered with an error message."""
        return self._iterate(as_text)

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """Binary messages, until the client goes. A text frame is answered with an error message."""
        return self._iterate(as_bytes)

    def iter_json(self) -> AsyncIterator[Any]:
        """Parsed JSON messages, until the client goes. What is no JSON is answered with an error message."""
        return self._iterate(as_json)

    @overload
    def iter_messages(self, model: type[T]) -> AsyncIterator[T]: ...
    @overload
    def iter_messages(self, model: TypeAdapter[T]) -> AsyncIterator[T]: ...
    @overload
    def iter_messages(self, model: Any) -> AsyncIterator[Any]: ...
    def iter_messages(self, model: Any) -> AsyncIterator[Any]:
        """Messages as instances of ``model``, until the client goes.

        A message that does not fit is answered with
        ``{"type": "error", "code": 107, "message": …, "errors": [{"loc": …, "msg": …, "type": …}]}``,
        and the loop goes on.

        :param model: a pydantic model, a union of models, or whatever else pydantic validates; a
            ``TypeAdapter`` keeps the type of a union known to a type checker.
        """
        return self._iterate(as_model(model))

    # For the node

    def end(self, code: int, reason: str) -> None:
        """Send what waits, then close, without waiting for it. The handler's loop ends."""
        reason = clip_reason(reason)
        if self._writer is not None:
            self._writer.end(code, reason)
        self._interrupt(code, reason)

    def tick(self, now: float) -> None:
        """Let go of a client that takes nothing, and of one that only the way out knows to be gone."""
        writer = self._entered()
        if self._ended is not None:
            return
        if (seconds := writer.stalled(now)) > self._options.send_timeout:
            reason = f"slow: nothing taken for {seconds:.0f} s"
            writer.end(CloseCode.SLOW, reason, discard=True)
            self.slow(reason)
        elif writer.is_gone:
            # The server tells the handler as soon as everything that had arrived is read. Not all servers
            # do so while the client's last bytes are still on their way out.
            self._gone_since = now if self._gone_since is None else self._gone_since
            if now - self._gone_since > self._options.close_timeout:
                self._client_left = True
                self._interrupt(CloseCode.ABNORMAL, "")

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        """Write where the client begins, then what it has missed."""
        messages = [frame.encoded(form.codec) for frame in missed]
        if (opening := form.opening(channel, start)) is not None:
            messages.insert(0, opening)
        if messages and self._writer is not None:
            self._writer.send(form.reply(*messages))

    def broken(self, channel: str, position: Position) -> bool:
        """End the connection with 3010, so that the client reconnects and starts again."""
        reason = f"insufficient state: {channel!r} continues from {position.offset}"
        self._disconnect(CloseCode.INSUFFICIENT_STATE, reason)
        return True

    def slow(self, reason: str) -> None:
        """End the connection with 3008."""
        self._node.slow_disconnects += 1
        self._disconnect(CloseCode.SLOW, reason)

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""
        return self._writer.backlog if self._writer else 0

    @property
    def dropped(self) -> int:
        """Publications that were dropped because the client was slow."""
        return self._writer.dropped if self._writer else 0

    # Inside

    def _entered(self) -> Writer:
        if self._writer is None:
            raise RuntimeError(
                'Expected the connection to be open: use "async with hub.connection(websocket)".'
            )
        # For other tasks, the connection has ended as it does when the client leaves.
        if self._left_by is not None and self._left_by() is asyncio.current_task():
            raise RuntimeError(
                "Expected the connection to be used inside of its block, but the block of 'async with "
                "hub.connection(websocket)' has ended, and the connection with it."
            )
        return self._writer

    def _check_host(self) -> None:
        host = self.websocket.headers.get("host")
        if self._options.hosts is None or self._options.hosts.include(host):
            return
        if (more := _foreign_hosts.admit()) is not None:
            logger.warning(
                "Refused a connection with 403: its Host is %.200r, which is not in Hub(hosts=…). Behind a "
                "proxy that rewrites Host, pass the header on (nginx: proxy_set_header Host $http_host).%s",
                host,
                more,
            )
        self._refuse("This server does not answer to the name in the Host header, says Hub(hosts=…).")

    def _check_origin(self) -> None:
        origin = self.websocket.headers.get("origin")
        host = self.websocket.headers.get("host")
        if origin is None or is_allowed(origin, host, self._options.allow_origins):
            return
        if (more := _foreign_pages.admit()) is not None:
            # Both come from the client: cut, and escaped by %r.
            logger.warning(
                "Refused a page from %.200r with 403: the request's Host is %.200r, and the page is not in "
                "Hub(allow_origins=…). If the page is this server's own, a proxy rewrites Host: pass the "
                "header on (nginx: proxy_set_header Host $http_host), or name the page in allow_origins.%s",
                origin,
                host,
                more,
            )
        self._refuse(f"Pages from {origin[:200]!r} may not connect here, says Hub(allow_origins=…).")

    def _refuse(self, detail: str) -> NoReturn:
        """Answer 403; or close, if the application has accepted the socket already."""
        is_reported.set(True)
        is_answerable = "websocket.http.response" in self.websocket.scope.get("extensions", {})
        if is_answerable and self.websocket.application_state is WebSocketState.CONNECTING:
            raise HTTPException(403, detail)
        raise WebSocketException(CloseCode.POLICY_VIOLATION, clip_reason(detail))

    def _presence_entry(self, channel: str, info: object, join_leave: JoinLeave | None) -> bytes | None:
        """What others are to know of this connection; ``None`` in a channel without presence."""
        if join_leave not in (None, *get_args(JoinLeave)):
            raise ValueError(
                f"Expected join_leave to be one of {get_args(JoinLeave)}, but got {join_leave!r}."
            )
        if self._node.has_presence(channel):
            return encode_entry(PresenceEntry(self.id, self.user, info))
        if info is not None or join_leave is not None:
            raise InvalidChannel(
                "Expected info and join_leave only for channels that are declared with presence=True, but "
                f"{channel!r} is not."
            )
        return None

    def _leave_all(self) -> None:
        for channel in self._channels:
            self._node.leave(channel, self._entered())
        self._channels.clear()

    async def _finish(self, code: int | None = None, reason: str = "") -> None:
        # With no code, somebody else closes: only send what waits.
        writer = self._entered()
        # A task that is left behind receiving would keep some servers (granian) from closing.
        self._interrupt(code or CloseCode.NORMAL, reason)
        if self._client_left:
            await writer.ended(0)
        else:
            writer.end(code, reason)
            await writer.ended(self._options.close_timeout)

    async def _write(self, message: WebSocketMessage) -> None:
        writer = self._entered()
        if not writer.has_room:
            await writer.room()
        if self._ended is None and not writer.is_gone:
            writer.send(PLAIN.reply(message))
        elif not self._iterating:
            raise WebSocketDisconnect(*(self._ended or (CloseCode.ABNORMAL, "")))

    async def _iterate(self, convert: Callable[[str | bytes], T]) -> AsyncIterator[T]:
        self._iterating += 1
        try:
            while True:
                try:
                    message = convert(await self.receive())
                except InvalidMessage as exc:
                    await self._answer(exc)
                else:
                    yield message
        except WebSocketDisconnect:
            pass
        finally:
            self._iterating -= 1

    async def _answer(self, error: InvalidMessage) -> None:
        answer: dict[str, Any] = {"type": "error", "code": ErrorCode.BAD_REQUEST, "message": str(error)}
        if error.errors:
            answer["errors"] = error.errors
        await self.send_json(answer)

    def _disconnect(self, code: int, reason: str) -> None:
        # Called in the middle of a feed's flush: the channels are left later, when the handler ends.
        logger.info("Connection %s is disconnected: %s.", self.id, reason)
        self.end(code, reason)

    def _interrupt(self, code: int, reason: str) -> None:
        if self._ended is None:
            self._ended = (code, reason)
            if self._receiving is not None:
                self._receiving.cancel()


def connection_id(connection: Connection | str) -> str:
    """The id of ``connection``, which may be given by its id.

    :raises TypeError: it is neither.
    :raises ValueError: it is a ``str`` that cannot be written as UTF-8.
    """
    if isinstance(connection, Connection):
        return connection.id
    if isinstance(connection, str):
        return check_utf8("the id of a connection", connection)
    raise TypeError(f"Expected a Connection or the id of one, but got {type(connection).__name__}.")


def _check_type(data: object, *types: type) -> None:
    if not isinstance(data, types):
        raise InvalidData(
            f"Expected {types[0].__name__}, but got {type(data).__name__}; send() takes anything."
        )


async def _is_closed(code: int = CloseCode.NORMAL, reason: str | None = None) -> None:
    """Takes the place of ``WebSocket.close`` once the connection has closed the socket."""
