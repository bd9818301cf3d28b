"""The WebSocket door: ``WS /channels/{channel}``, for ``new WebSocket(url)``.

One socket has one channel. The client is refused before its socket is accepted, with a status. After that,
errors are messages, and the socket stays open. Each frame is handled to its end before the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from msgspec import DecodeError, Meta, Raw, Struct, json
from starlette.background import BackgroundTasks
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import WebSocketException
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from hubbub.channels.access import Access, Target
from hubbub.channels.app_handlers import find_handler
from hubbub.channels.current import Client, receive_nothing
from hubbub.channels.failures import failure_of
from hubbub.channels.messages import peek
from hubbub.channels.signature import is_async
from hubbub.codes import CloseCode, ErrorCode
from hubbub.connection.decoding import as_json
from hubbub.connection.door import DoorConnection
from hubbub.connection.rate import TokenBucket
from hubbub.core.publication import encode_json
from hubbub.exceptions import Denied, EngineUnavailable, InvalidMessage
from hubbub.protocols.messages import encode_message
from hubbub.routes.leaving import left, recheck
from hubbub.routes.query import Subscription, parse_query
from hubbub.routes.refusals import find_target, refusals
from hubbub.routes.serving import Entrance, Serving
from hubbub.security.tokens import select_subprotocol

logger = logging.getLogger(__name__)


class TooManyMessages(Denied):
    """A message beyond ``Hub(max_message_rate=…)``, which is not handled."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=ErrorCode.TOO_MANY_REQUESTS)


class _Rpc(Struct):
    """``{"type": "rpc", "id": 7, "method": "…", "data": …}``."""

    id: int | Annotated[str, Meta(max_length=64)]
    method: str
    data: Raw = Raw(b"null")


class _Refresh(Struct):
    """``{"type": "refresh", "token": "…"}``."""

    token: str


_decode_rpc = json.Decoder(_Rpc).decode
_decode_refresh = json.Decoder(_Refresh).decode


class WebSocketDoor:
    """The door for sockets.

    :param serving: the parts of the hub that it uses.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def endpoint(self, websocket: WebSocket, channel: str) -> None:
        """Serve one socket, from the handshake to the end."""
        serving, client = self._serving, Client(websocket)
        with Entrance(serving, client) as entrance:
            with refusals(serving, websocket, entrance):
                access = await entrance.enter()
                target = find_target(access, channel)
                subscription = parse_query(websocket, target.declaration)
                connection = self._open(client, entrance)
                await access.subscribe(client, target)
            try:
                async with connection:
                    client.send = connection.send_event
                    limit = serving.limits.max_message_rate
                    await _Session(access, client, target, connection, entrance, limit).run(subscription)
            finally:
                await left(access, client, target)

    def _open(self, client: Client, entrance: Entrance) -> DoorConnection:
        """Return the connection of a client that has entered; it is accepted later."""
        assert isinstance(client.http, WebSocket)
        assert entrance.slot is not None
        subprotocol = select_subprotocol(client.http.scope["subprotocols"])
        connection = self._serving.open_connection(
            client.http, client.identity.user, subprotocol, entrance.slot
        )
        client.connection = connection
        return connection


class _Session:
    """One open socket.

    :param access: the handlers of the hub.
    :param client: the client, which has passed ``on_subscribe``.
    :param target: its channel.
    :param connection: its connection, which is open.
    :param entrance: through which the client has come; counts refusals.
    :param max_message_rate: messages a second that reach a handler; ``None``: no limit.
    """

    def __init__(
        self,
        access: Access,
        client: Client,
        target: Target,
        connection: DoorConnection,
        entrance: Entrance,
        max_message_rate: int | None,
    ) -> None:
        self._access = access
        self._client = client
        self._target = target
        self._connection = connection
        self._entrance = entrance
        self._max_message_rate = max_message_rate
        # A burst of as many is free.
        self._bucket = None if max_message_rate is None else TokenBucket(max_message_rate, max_message_rate)
        # Text frames are JSON, unless a handler takes them as they are: then none of them is an rpc.
        self._takes_json = target.operations.messages.takes_json

    async def run(self, subscription: Subscription) -> None:
        """Subscribe to the channel, and handle messages until the client leaves."""
        await self._subscribe(subscription)
        # Afterwards: the first message is that of the subscription.
        self._connection.recheck_with(self._recheck, self._entrance.rechecks)
        self._connection.expire_at(self._client.identity.expires_at, self._expiring)
        async for data in self._connection.messages():
            await self._handle(data)

    # Subscribing

    async def _subscribe(self, asked: Subscription) -> None:
        has_snapshot = self._target.operations.snapshot is not None
        try:
            await self._connection.join(
                self._target.channel.name,
                since=asked.since,
                # The state has them in it.
                history=0 if has_snapshot else asked.history,
                positions=asked.positions or asked.since is not None or has_snapshot,
                snapshot=partial(self._access.snapshot, self._client, self._target) if has_snapshot else None,
                info=self._client.identity.info,
                join_leave=asked.presence,
            )
        except EngineUnavailable as exc:
            logger.info("Closing connection %s with 1013: %s", self._connection.id, exc)
            raise WebSocketException(CloseCode.TRY_AGAIN_LATER, "the service is unavailable") from exc

    async def _recheck(self) -> None:
        """Run ``on_subscribe`` again; close the connection with 3507 if it refuses."""
        if (close := await recheck(self._access, self._client, self._target)) is not None:
            await self._connection.close(*close)

    def _expiring(self, seconds: int) -> None:
        self._connection.send_at_once(encode_message("expiring", None, {"seconds": seconds}))

    # Messages

    async def _handle(self, data: str | bytes) -> None:
        """Handle one message to its end. Errors are answered, and the socket stays open."""
        kind = peek(data) if self._takes_json and isinstance(data, str) else None
        if kind == "rpc":
            await self._rpc(data)
        elif kind == "refresh":
            await self._guarded(partial(self._refresh, data))
        else:
            await self._guarded(partial(self._publish, data, kind))

    async def _publish(self, data: str | bytes, kind: str | None) -> None:
        self._take_turn()
        outcome = await self._access.publish(self._client, self._target, data, kind)
        await self._run_background(outcome.background)

    async def _rpc(self, data: str | bytes) -> None:
        fields: dict[str, Any] = {}
        await self._guarded(partial(self._call, data, fields), fields)

    async def _call(self, data: str | bytes, fields: dict[str, Any]) -> None:
        """Call an rpc method.

        :param fields: gets the id of the call, for an error.
        """
        try:
            rpc = _decode_rpc(data)
        except (DecodeError, UnicodeError, RecursionError) as exc:
            as_json(data)
            raise InvalidMessage(
                'Expected an rpc as {"type": "rpc", "id": 7, "method": "…", "data": …}, with an integer or '
                "at most 64 characters as id, but got other fields.",
                code=CloseCode.INVALID_DATA,
            ) from exc
        fields["id"] = rpc.id
        self._take_turn()
        reply = await self._access.rpc(self._client, rpc.method, bytes(rpc.data))
        await self._connection.send_message(
            encode_message("reply", None, {"id": rpc.id, "data": Raw(reply.data)})
        )
        await self._run_background(reply.background)

    async def _refresh(self, data: str | bytes) -> None:
        try:
            token = _decode_refresh(data).token
        except (DecodeError, UnicodeError, RecursionError) as exc:
            raise InvalidMessage(
                'Expected a refresh as {"type": "refresh", "token": "…"}, but got other fields.',
                code=CloseCode.INVALID_DATA,
            ) from exc
        client = self._client
        try:
            identity, scope = await self._access.refresh(client, token)
        except Exception as exc:
            if failure_of(exc).status >= 500:
                raise
            raise WebSocketException(CloseCode.INVALID_TOKEN, "invalid token") from exc
        if identity.user != client.identity.user:
            raise WebSocketException(CloseCode.INVALID_TOKEN, "token of another user")
        client.identity, client.scope = identity, scope
        expires = self._connection.seconds_until(identity.expires_at)
        await self._connection.send_message(encode_message("refreshed", None, {"expires": expires}))
        # Afterwards: a notice of the next expiry may be due at once.
        self._connection.expire_at(identity.expires_at, self._expiring)

    def _take_turn(self) -> None:
        """Count a message that is to reach a handler.

        :raises TooManyMessages: there are too many of them.
        """
        if self._bucket is not None and self._bucket.take():
            raise TooManyMessages(f"more than {self._max_message_rate} messages a second")

    async def _run_background(self, tasks: BackgroundTasks | None) -> None:
        if tasks is None:
            return
        try:
            await tasks()
        except Exception:
            # The client has its answer already.
            logger.exception("A background task of %r failed.", self._target.channel.name)

    # Errors

    async def _guarded(
        self, operation: Callable[[], Awaitable[None]], fields: dict[str, Any] | None = None
    ) -> None:
        """Run ``operation``; send the client an error message if it fails.

        :param fields: of the error message, in addition.
        :raises WebSocketException: the operation closes the socket.
        """
        fields = {} if fields is None else fields
        try:
            await operation()
        except (WebSocketException, WebSocketDisconnect):
            raise
        except Exception as exc:
            left = await self._handled(exc, fields)
            if left is None:
                return
            failure = failure_of(left)
            if isinstance(left, TooManyMessages):
                self._entrance.count_reason("message_rate")
            else:
                self._entrance.count(failure.code)
            if failure.is_internal:
                logger.error("A handler of %r failed.", self._target.channel.name, exc_info=left)
            await self._connection.send_message(encode_json(failure.as_message(**fields)))

    async def _handled(self, exc: Exception, fields: dict[str, Any]) -> Exception | None:
        """Give ``exc`` to the application's handler for it.

        :return: the exception that is left to be answered; ``None`` if nothing more is sent.
        """
        handler = find_handler(self._client.http, exc)
        if handler is None:
            return exc
        has_sent = False

        async def send(event: Message) -> None:
            nonlocal has_sent
            has_sent = True
            await self._connection.send_event(event)

        socket = WebSocket(self._client.scope.copy(), receive_nothing, send)
        socket.client_state = socket.application_state = WebSocketState.CONNECTED
        try:
            if is_async(handler):
                await handler(socket, exc)
            else:
                await run_in_threadpool(handler, socket, exc)
        except (WebSocketException, WebSocketDisconnect):
            raise
        except Exception as raised:
            return raised
        # The client waits for the answer to an rpc.
        return (
            RuntimeError("an exception handler has sent nothing") if "id" in fields and not has_sent else None
        )
