"""Connection: one client's socket, subscribed to any number of channels."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, overload
from uuid import uuid4

from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from hubbub.codes import CloseCode, ErrorCode, check_code
from hubbub.connection.closing import Refused, close_for, has_websocket_handler, is_disconnect, leave_closed
from hubbub.connection.decoding import as_bytes, as_json, as_model, as_text, exceeds
from hubbub.connection.handle import Handle
from hubbub.connection.limits import Limits
from hubbub.connection.receiving import Receiver
from hubbub.connection.subscriptions import ConnectionSubscriptions, presence_entry
from hubbub.core.outbox import Outbox
from hubbub.core.publication import Position, check_channel, check_position, encode, encode_json
from hubbub.exceptions import InvalidData, InvalidMessage
from hubbub.node.node import Node
from hubbub.node.slots import Slot
from hubbub.protocols.envelope import ENVELOPE
from hubbub.protocols.plain import PLAIN
from hubbub.protocols.websocket import WebSocketMessage
from hubbub.security.admission import Admission, refusal
from hubbub.transports.asgi import claim, open_transport
from hubbub.transports.writer import Writer
from hubbub.types import JoinLeave, User, check_utf8, user_id

T = TypeVar("T")


class Connection:
    """One client's socket, made by :meth:`hubbub.Hub.connection` and used as ``async with``.

    ::

        @app.websocket("/rooms/{room_id}")
        async def room(websocket: WebSocket, room_id: int) -> None:
            async with hub.connection(websocket) as client:
                await client.subscribe(f"room:{room_id}")
                async for text in client.iter_text():
                    await hub.publish(f"room:{room_id}", text)

    Entering the block checks the page's origin and the limits on connections, and accepts the socket. Leaving
    it, in any way, unsubscribes from every channel and closes the socket; :meth:`__aexit__` has the codes.
    """

    def __init__(
        self,
        node: Node,
        websocket: WebSocket,
        admission: Admission,
        limits: Limits,
        *,
        user: User | None = None,
        subprotocol: str | None = None,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
        slot: Slot | None = None,
    ) -> None:
        #: Unique among all connections of the hub.
        self.id: str = uuid4().hex
        #: Starlette's object, for headers, cookies and state.
        self.websocket = websocket

        self._node = node
        self._admission = admission
        self._limits = limits
        self._accept = (subprotocol, headers)
        # Its place in the process: given by a door, which also releases it; or taken when the block is
        # entered.
        self._door_slot = slot
        self._slot: Slot | None = None
        self._receiver = Receiver(websocket)
        self._handle = Handle(node, self.id, self._receiver, limits)
        self._subscriptions = ConnectionSubscriptions(node, self._receiver)
        # From the moment in which the block is entered.
        self._writer: Writer | None = None
        # The task whose block has ended. Weakly: if it has failed, its traceback holds this object.
        self._left_by: weakref.ref[asyncio.Task[Any]] | None = None
        self.user = user

    @property
    def user(self) -> str | None:
        """The user, if the application has given one; an ``int`` or a ``UUID`` becomes its ``str``.

        :raises TypeError: another type is assigned.
        :raises HTTPException: the user that is assigned has ``Hub(max_user_connections=…)`` connections
            already (429). Not caught, this closes the connection with 1008.
        """
        return self._handle.user

    @user.setter
    def user(self, user: User | None) -> None:
        user = None if user is None else user_id(user)
        if self._slot is not None:
            self._slot.claim_user(user)
        self._handle.user = user

    def __repr__(self) -> str:
        return f"<Connection {self.id} user={self.user!r} channels={len(self._subscriptions)}>"

    # Lifecycle

    async def __aenter__(self) -> Self:
        if self._writer is not None:
            raise RuntimeError(
                "Expected a new connection, but this one has been entered before. Enter each connection once."
            )
        self._admission.check(self.websocket, self._node.refusals)
        slot = self._take_slot()
        try:
            claim(self.websocket)
            self._slot = slot
            if self.websocket.application_state is WebSocketState.CONNECTING:
                await self.websocket.accept(*self._accept)
            outbox = Outbox(self._limits.outbox_limit, self._limits.slow_consumer)
            # Without a reference to this object, which the server would keep.
            on_too_large = partial(self._node.refusals.count, "message_size")
            transport = open_transport(self.websocket, self._limits.max_message_size, on_too_large)
            self._writer = Writer(self.id, transport, outbox, self._handle)
        except BaseException:
            self._release(slot)
            raise
        self._handle.writer = self._writer
        self._node.add(self._handle)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Unsubscribe from every channel and close the socket.

        ====================================  =====================================================
        the block ended by                    the client sees
        ====================================  =====================================================
        its end, ``return``, ``break``        1000
        the client leaving                    its own close; ``WebSocketDisconnect`` ends here
        ``WebSocketException``                its code and reason
        ``HTTPException``                     1008 if its status is 4xx, 1011 if it is 5xx
        ``InvalidMessage``                    1003 or 1007
        ``InvalidPosition``                   1008
        cancellation                          1001
        any other exception                   1011
        ====================================  =====================================================

        If the application has an exception handler for the exception, with a parameter of type
        ``WebSocket`` or for a ``WebSocketException``, that handler closes the socket instead.

        Exceptions continue to FastAPI, which logs or handles them. In place of an exception that has a code
        in this table, a ``WebSocketException`` with the code continues; the exception is its cause.
        """
        self._subscriptions.remove_all(self._entered())
        try:
            return await self._close_for(exc)
        finally:
            self._node.remove(self._handle)
            self._handle.release()
            if self._slot is not None:
                self._release(self._slot)
            if (task := asyncio.current_task()) is not None:
                self._left_by = weakref.ref(task)

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Send all that waits, then close the socket. The handler's loop ends, in whichever task it is.

        :param code: 1000 to 1014 as in :rfc:`6455#section-7.4.1`, or 3000 to 4999.
        :param reason: cut to the 123 bytes that fit into a close frame.
        :raises ValueError: ``code`` may not be sent.
        """
        check_code(code)
        writer = self._entered()
        self._handle.end(code, reason)
        await writer.ended(self._limits.close_timeout)

    # Subscriptions

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
        """Send the client the publications of ``channel`` from now on. A second call changes nothing.

        A client that reconnects can resume. With ``positions=True`` it gets the id of each publication; it
        keeps the last one and sends it back, to be given as ``since``. It first gets all publications after
        that position, in pieces as it takes them, then new ones, without a gap; or it learns that this is not
        possible. Publications that excluded this connection are left out; a new connection that resumes gets
        them.

        When the engine later loses publications that the client should have got, its connection is closed
        with 3010, "insufficient state", so that it reconnects.

        In a channel that is declared with ``presence=True`` the connection is visible in presence, with its
        ``user`` and ``info``, before it gets the first publication.

        :param since: send first the publications after this position; a ``Position``, or its id,
            ``str(position)``.
        :param history: where ``since`` is ``None``: send first this many of the last publications, or as many
            as the channel keeps.
        :param positions: wrap publications in JSON envelopes. The client first gets
            ``{"type": "subscribed", "channel": …, "id": …}``, with ``since`` also ``"recovered"``: whether
            all publications after that position follow. Each publication is ``{"type": "publication",
            "channel": …, "id": …, "data": …}``: JSON unchanged, text as a string, binary as ``"base64"`` in
            place of ``"data"``. In a channel without history, ``id`` is ``null``.
        :param info: data that other clients see in presence, written as JSON of at most some 4,000 bytes.
        :param join_leave: send the client the presence of the channel, once, as
            ``{"type": "presence", "channel": …, "entries": [{"connection": …, "user": …, "info": …}]}``, and
            then its joins and leaves, in the same shape with the type ``"join"`` or ``"leave"``. With
            ``"connections"`` there is an entry for each connection; with ``"users"`` one for each user, with
            any number of connections.
        :return: the channel's position at the moment in which the client joined, after all that it had missed
            was sent.
        :raises InvalidChannel: a channel cannot have this name; or ``history``, or ``since`` without
            ``positions``, is given for a channel that is not declared with a history; or ``info`` or
            ``join_leave`` for a channel without presence.
        :raises InvalidData: ``info`` cannot be written as JSON, or is too long.
        :raises InvalidPosition: ``since`` is not the id of a position.
        :raises Unrecoverable: publications after ``since`` are missing in the history; the client is not
            subscribed. Not with ``positions``: there the client gets ``"recovered": false`` and new
            publications.
        :raises EngineUnavailable: the engine cannot be reached; the client is not subscribed.
        :raises TypeError: ``history`` is not an ``int``.
        :raises ValueError: ``history`` is negative, ``join_leave`` is none of its values, or the client has
            subscribed already, with another ``positions``.
        """
        since = None if since is None else check_position(since)
        self._node.check_history(check_channel(channel), since, history, has_positions=positions)
        writer = self._entered()
        entry = presence_entry(self._node, channel, self.id, self.user, info, join_leave)
        return await self._subscriptions.add(
            channel,
            writer,
            entry=entry,
            since=since,
            history=history,
            form=ENVELOPE if positions else PLAIN,
            join_leave=join_leave,
        )

    async def unsubscribe(self, channel: str) -> None:
        """Get no more publications of ``channel``. Publications from before still arrive."""
        if channel in self._subscriptions:
            self._subscriptions.remove(channel, self._entered())

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
        """Send to this client only: ``str`` as text, ``bytes`` as binary, any other data as JSON.

        Waits while the outbox of a slow client is full, so that a handler cannot run ahead of the client. In
        an ``iter_*`` loop, messages to a client that has left are dropped: the loop ends by itself once all
        messages from the client are handled.

        A handler that only sends learns from the exception that its client has left, on servers whose
        ``send`` reports it (uvicorn does; hypercorn and granian drop messages silently). To learn it on every
        server, receive as well.

        :param data: a pydantic model, a dataclass, a dict, a list or a number, for example, becomes JSON.
        :raises InvalidData: ``data`` cannot be written as JSON.
        :raises WebSocketDisconnect: the client has left, and no ``iter_*`` loop is running.
        """
        await self._write(WebSocketMessage(*encode(data)))

    # Receiving

    async def receive(self) -> str | bytes:
        """Wait for the next message: ``str`` from a text frame, ``bytes`` from a binary one.

        :raises WebSocketDisconnect: the client has left, or the connection was closed from this side. Not
            caught, it ends the block without being an error.
        :raises RuntimeError: another task is waiting for a message already.
        """
        self._entered()
        data = await self._receiver.receive()
        limit = self._limits.max_message_size
        if exceeds(data, limit):
            self._node.refusals.count("message_size")
            await self.close(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {limit} bytes")
            raise WebSocketDisconnect(CloseCode.MESSAGE_TOO_BIG)
        return data

    async def receive_text(self) -> str:
        """Wait for the next message, which has to be a text frame.

        :raises InvalidMessage: it is a binary frame. Not caught, this closes the connection with 1003.
        :raises WebSocketDisconnect: see :meth:`receive`.
        """
        return as_text(await self.receive())

    async def receive_bytes(self) -> bytes:
        """Wait for the next message, which has to be a binary frame.

        :raises InvalidMessage: it is a text frame. Not caught, this closes the connection with 1003.
        :raises WebSocketDisconnect: see :meth:`receive`.
        """
        return as_bytes(await self.receive())

    async def receive_json(self) -> Any:
        """Wait for the next message, which has to be JSON, in a text or a binary frame.

        :raises InvalidMessage: it is not JSON. Not caught, this closes the connection with 1007.
        :raises WebSocketDisconnect: see :meth:`receive`.
        """
        return as_json(await self.receive())

    async def receive_message(self, model: type[T] | TypeAdapter[T]) -> T:
        """Wait for the next message, which has to be JSON that fits ``model``; see :meth:`iter_messages`.

        :raises InvalidMessage: it does not fit. Not caught, this closes the connection with 1007.
        :raises WebSocketDisconnect: see :meth:`receive`.
        """
        return as_model(model)(await self.receive())

    def iter_text(self) -> AsyncIterator[str]:
        """Yield text messages until the client leaves. A binary frame is answered with an error message."""
        return self._iterate(as_text)

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """Yield binary messages until the client leaves. A text frame is answered with an error message."""
        return self._iterate(as_bytes)

    def iter_json(self) -> AsyncIterator[Any]:
        """Yield parsed JSON until the client leaves. Any other message is answered with an error message."""
        return self._iterate(as_json)

    @overload
    def iter_messages(self, model: type[T]) -> AsyncIterator[T]: ...
    @overload
    def iter_messages(self, model: TypeAdapter[T]) -> AsyncIterator[T]: ...
    @overload
    def iter_messages(self, model: Any) -> AsyncIterator[Any]: ...
    def iter_messages(self, model: Any) -> AsyncIterator[Any]:
        """Yield messages as instances of ``model`` until the client leaves.

        A message that does not fit is answered with
        ``{"type": "error", "code": 107, "message": …, "errors": [{"loc": …, "msg": …, "type": …}]}``,
        and the loop continues.

        :param model: a pydantic model, a union of models, or any other type that pydantic validates; with a
            ``TypeAdapter`` of a union, type checkers know the type of the messages.
        """
        return self._iterate(as_model(model))

    # Internal

    def _take_slot(self) -> Slot:
        if self._door_slot is not None:
            return self._door_slot
        try:
            slot = self._node.admit()
            try:
                slot.claim_user(self.user)
            except HTTPException:
                slot.release()
                raise
        except HTTPException as exc:
            raise refusal(self.websocket, exc) from None
        return slot

    def _release(self, slot: Slot) -> None:
        if slot is not self._door_slot:
            slot.release()

    def _entered(self) -> Writer:
        """Return the writer, which exists from the moment in which the block is entered.

        :raises RuntimeError: the block has not been entered, or has ended in this task.
        """
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

    async def _close_for(self, exc: BaseException | None) -> bool:
        """Close the socket as ``exc`` demands; returns whether ``exc`` ends here."""
        if exc is None or is_disconnect(exc):
            await self._finish(CloseCode.NORMAL)
            return True
        if isinstance(exc, asyncio.CancelledError):
            await self._finish(CloseCode.GOING_AWAY, "cancelled")
        elif has_websocket_handler(self.websocket, exc):
            await self._finish()
        elif (refusal := close_for(exc)) is None:
            await self._finish(CloseCode.INTERNAL_ERROR, "internal error")
        elif has_websocket_handler(self.websocket, refusal) or not leave_closed(self.websocket):
            await self._finish()
            raise refusal from exc
        else:
            await self._finish(refusal.code, refusal.reason)
            raise Refused(refusal.code, refusal.reason) from exc
        return False

    async def _finish(self, code: int | None = None, reason: str = "") -> None:
        """Send all that waits, then a close frame.

        :param code: ``None`` sends no close frame: FastAPI's exception handling does.
        """
        writer = self._entered()
        # A task that is left behind receiving would keep some servers (granian) from closing.
        self._receiver.end(code or CloseCode.NORMAL, reason)
        if self._receiver.client_left:
            await writer.ended(0)
        else:
            writer.end(code, reason)
            await writer.ended(self._limits.close_timeout)

    async def _write(self, message: WebSocketMessage) -> None:
        writer = self._entered()
        if not writer.has_room:
            await writer.room()
        if self._receiver.ended is None and not writer.is_gone:
            writer.send(PLAIN.reply(message))
        elif not self._receiver.is_iterating:
            raise WebSocketDisconnect(*(self._receiver.ended or (CloseCode.ABNORMAL, "")))

    def _iterate(self, decode: Callable[[str | bytes], T]) -> AsyncIterator[T]:
        return self._receiver.iterate(self.receive, decode, self._answer)

    async def _answer(self, error: InvalidMessage) -> None:
        answer: dict[str, Any] = {"type": "error", "code": ErrorCode.BAD_REQUEST, "message": str(error)}
        if error.errors:
            answer["errors"] = error.errors
        await self.send_json(answer)


def connection_id(connection: Connection | str) -> str:
    """Return the id of ``connection``, which may be given by its id.

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
            f"Expected {types[0].__name__}, but got {type(data).__name__}. Use send(), which takes any data."
        )
