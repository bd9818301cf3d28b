"""A client for tests: it drives an app's WebSockets without a server, with a deadline on every wait."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar, overload

from pydantic import TypeAdapter
from starlette import datastructures
from starlette.types import ASGIApp, Message, Scope

from hubbub.codes import MAX_REASON_BYTES, CloseCode, check_code
from hubbub.core.publication import encode
from hubbub.testing.app_lifespan import lifespan
from hubbub.testing.exchange import Buffer, Exchange
from hubbub.testing.failures import MAX_BODY, Closed, Refused
from hubbub.testing.messages import decode, describe
from hubbub.testing.request import Headers, Query, request_scope
from hubbub.types import check_seconds

T = TypeVar("T")

#: Bytes of a message from the client, beyond which the connection is closed with 1009: uvicorn's default.
MAX_MESSAGE_SIZE = 16_777_216

#: Close codes after which a loop over the messages ends without an exception.
_ORDERLY = (CloseCode.NORMAL, CloseCode.GOING_AWAY)


@asynccontextmanager
async def connect(
    app: ASGIApp,
    channel: str | None = None,
    *,
    path: str | None = None,
    headers: Headers | None = None,
    cookies: Mapping[str, str] | None = None,
    query: Query | None = None,
    subprotocols: Sequence[str] = (),
    timeout: float = 5.0,
) -> AsyncIterator[Client]:
    """Connect a client to a WebSocket of ``app``, in this event loop and without a server.

    ::

        from hubbub.testing import connect

        async def test_a_message_reaches_the_room() -> None:
            async with connect(app, "room:7") as ann, connect(app, "room:7") as bob:
                await ann.send({"type": "say", "text": "hi"})
                assert await bob.receive() == {"type": "said", "text": "hi"}

    It starts the app, unless another client has started it, and stops it with the last one; see
    :func:`hubbub.testing.lifespan`. An exception of the app is raised in the test: by the client's next call,
    or at the end of the block.

    :param app: the app, or any other ASGI application.
    :param channel: a declared channel, such as ``"room:7"``; for apps that include the router of a hub.
    :param path: instead, the path of an endpoint, such as ``"/ws/7"``, as in a URL.
    :param headers: further headers, such as ``{"Authorization": "Bearer …"}``. Without an ``Origin`` the
        client is none of a web page.
    :param cookies: cookies, by name.
    :param query: query parameters, by name; or all of them as in a URL.
    :param subprotocols: those that the client offers.
    :param timeout: seconds that the app has to accept the client, to take a message and, when the client has
        left, to return; and for :meth:`Client.receive`, unless it has its own.
    :raises Refused: the app refuses the client.
    :raises TimeoutError: the app has neither accepted nor refused the client in time.
    :raises TypeError: a parameter has the wrong type.
    :raises ValueError: a parameter cannot be sent, or the app has no door for ``channel``.
    """
    check_seconds("timeout", timeout)
    async with lifespan(app) as state:
        scope = request_scope(
            "websocket",
            app,
            state,
            channel=channel,
            path=path,
            headers=headers,
            cookies=cookies,
            query=query,
            subprotocols=subprotocols,
        )
        exchange = WebSocketExchange(app, scope)
        async with exchange.running(timeout):
            accepted = await exchange.handshake(timeout)
            yield Client(exchange, accepted, timeout)


class Client:
    """A client of a WebSocket; :func:`connect` makes it.

    :param exchange: with the app that has accepted the client.
    :param accepted: the event by which it has.
    :param timeout: seconds of each wait.
    """

    def __init__(self, exchange: WebSocketExchange, accepted: Message, timeout: float) -> None:
        self._exchange = exchange
        self._timeout = timeout
        #: The subprotocol that the app has selected.
        self.subprotocol: str | None = accepted.get("subprotocol")
        #: The headers that the app has sent with the acceptance.
        self.headers = datastructures.Headers(raw=list(accepted.get("headers") or ()))
        self._is_receiving = False
        # For the text of exceptions: how many messages, and the last one.
        self._sent = self._received = (0, "nothing")

    def __repr__(self) -> str:
        return f"<Client {self._exchange.scope['path']}>"

    # Messages

    async def send(self, data: object) -> None:
        """Send a message: ``str`` as text, ``bytes`` as binary, any other data as JSON.

        When this returns, the app may not have received it yet.

        :param data: a pydantic model, a dict or a list, for example, becomes JSON.
        :raises Closed: the connection is closed.
        :raises InvalidData: ``data`` cannot be written as JSON.
        :raises TimeoutError: the app has received none of the 64 KiB that wait for it.
        """
        kind, encoded = encode(data)
        message: str | bytes = encoded if kind == "binary" else encoded.decode()
        exchange = self._exchange
        has_room = await exchange.until(
            lambda: exchange.inbound.has_room or exchange.is_closed, self._timeout
        )
        if exchange.is_closed:
            raise await exchange.ended(self._timeout)
        if not has_room:
            raise TimeoutError(f"The app took no message within {self._timeout:g} s; {self._history()}")
        self._sent = (self._sent[0] + 1, describe(message))
        exchange.send_message(message, len(encoded))

    @overload
    async def receive(self, model: None = None, *, timeout: float | None = None) -> Any: ...
    @overload
    async def receive(self, model: type[T], *, timeout: float | None = None) -> T: ...
    @overload
    async def receive(self, model: TypeAdapter[T], *, timeout: float | None = None) -> T: ...
    @overload
    async def receive(self, model: Any, *, timeout: float | None = None) -> Any: ...
    async def receive(self, model: Any = None, *, timeout: float | None = None) -> Any:
        """Wait for the next message.

        :param model: a pydantic model, or another type that pydantic validates, of which an instance is
            returned; ``str`` and ``bytes`` stand for the message as it is. ``None``: text is parsed as JSON,
            or returned as it is if it is not JSON, and a binary message is ``bytes``.
        :param timeout: seconds; ``None`` for those of :func:`connect`.
        :raises AssertionError: the message does not fit ``model``.
        :raises Closed: the connection is closed, and all messages from before have been received.
        :raises TimeoutError: no message arrives in time. The text has the last messages.
        :raises Exception: the app has failed; it is the exception of the app.
        """
        seconds = self._timeout if timeout is None else timeout
        check_seconds("timeout", seconds)
        return decode(await self._next(seconds), model)

    async def receive_nothing(self, *, seconds: float = 0.1) -> None:
        """Wait for ``seconds``, in which no message may arrive.

        :raises AssertionError: a message arrives.
        :raises Closed: the connection is closed.
        :raises Exception: the app has failed; it is the exception of the app.
        """
        check_seconds("seconds", seconds)
        try:
            message = await self._next(seconds)
        except TimeoutError:
            return
        raise AssertionError(f"Expected no message within {seconds:g} s, but got {describe(message)}.")

    def __aiter__(self) -> Self:
        """Iterate over the messages, as :meth:`receive` returns them.

        The loop ends when the connection is closed with 1000 or 1001; the exceptions are those of
        :meth:`receive`.
        """
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except Closed as exc:
            if exc.code in _ORDERLY:
                raise StopAsyncIteration from None
            raise

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close the connection, and wait until the app has returned. Messages from before are handled first.

        :param code: 1000 to 1014 as in :rfc:`6455#section-7.4.1`, or 3000 to 4999.
        :param reason: at most 123 bytes.
        :raises ValueError: ``code`` may not be sent, or ``reason`` is too long.
        :raises Exception: the app has failed; it is the exception of the app.
        """
        check_code(code)
        if len(reason.encode()) > MAX_REASON_BYTES:
            raise ValueError(
                f"Expected a reason of at most {MAX_REASON_BYTES} bytes, but got {reason!r:.200}."
            )
        self._exchange.disconnect(code, reason)
        await self._exchange.end(self._timeout)
        self._exchange.check_failure()

    # Internal

    async def _next(self, seconds: float) -> str | bytes:
        if self._is_receiving:
            raise RuntimeError("Expected one task at a time to receive, but another one is waiting already.")
        self._is_receiving = True
        try:
            message = await self._exchange.take(
                seconds, lambda: f"No message arrived within {seconds:g} s; {self._history()}"
            )
        finally:
            self._is_receiving = False
        self._received = (self._received[0] + 1, describe(message))
        return message

    def _history(self) -> str:
        (sent, last_sent), (received, last_received) = self._sent, self._received
        return (
            f"{self!r} has sent {sent} messages, the last one {last_sent}, and received {received}, the last "
            f"one {last_received}."
        )


class WebSocketExchange(Exchange[str | bytes]):
    """One WebSocket between a client and an app, as uvicorn has it."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        super().__init__(app, scope)
        #: Messages for the app.
        self.inbound: Buffer[Message] = Buffer()
        self._has_connected = False
        self._accepted: Message | None = None
        # The response by which the client is refused, and whether all of it is there.
        self._response: tuple[int, datastructures.Headers] | None = None
        self._body = b""
        self._is_refused = False
        # For the exception of a client that was refused by a close frame.
        self._note = ""
        # The code and reason that the client sees, once the app has closed, and those that the app sees.
        self._closed: tuple[int, str] | None = None
        self._disconnected: tuple[int, str] | None = None

    # The app's side

    async def receive(self) -> Message:
        if not self._has_connected:
            self._has_connected = True
            return {"type": "websocket.connect"}
        await self.until(lambda: bool(self.inbound) or self._disconnected is not None)
        if self.inbound:
            message = self.inbound.pop()
            self.changed()
            return message
        assert self._disconnected is not None
        code, reason = self._disconnected
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        await self.room()
        kind = message["type"]
        if self._is_refused or self._closed is not None:
            raise RuntimeError(f"Unexpected ASGI message {kind!r}, after the socket was closed.")
        if self._accepted is not None:
            self._send_open(kind, message)
        elif self._response is not None:
            self._send_response(kind, message)
        else:
            self._answer(kind, message)
        self.changed()

    def _answer(self, kind: str, message: Message) -> None:
        if kind == "websocket.accept":
            offered = self.scope["subprotocols"]
            if (selected := message.get("subprotocol")) is not None and selected not in offered:
                raise ValueError(
                    f"Expected a subprotocol that the client offers ({', '.join(offered) or 'none'}), but "
                    f"got {selected!r}. Browsers fail such a connection."
                )
            self._accepted = message
        elif kind == "websocket.close":
            # As servers do, which lose code and reason.
            self._note = (
                f"The app closed the socket with {message.get('code', 1000)}, "
                f"{message.get('reason') or ''!r}, before it accepted it; a server answers that with 403."
            )
            self._response = (403, datastructures.Headers())
            self._refuse()
        elif kind == "websocket.http.response.start":
            headers = datastructures.Headers(raw=list(message.get("headers") or ()))
            self._response = (message["status"], headers)
        else:
            raise RuntimeError(f"Unexpected ASGI message {kind!r}, before the socket was accepted.")

    def _send_response(self, kind: str, message: Message) -> None:
        if kind != "websocket.http.response.body":
            raise RuntimeError(f"Unexpected ASGI message {kind!r}, in the middle of a response.")
        self._body += message.get("body", b"")
        if not message.get("more_body", False) or len(self._body) > MAX_BODY:
            self._refuse()

    def _send_open(self, kind: str, message: Message) -> None:
        if kind == "websocket.send":
            data = message.get("bytes")
            if data is not None:
                self.outbound.push(bytes(data), len(data))
            elif (text := message.get("text")) is not None:
                self.outbound.push(text, len(text.encode()))
        elif kind == "websocket.close":
            code, reason = message.get("code", CloseCode.NORMAL), message.get("reason") or ""
            check_code(code)
            if len(reason.encode()) > MAX_REASON_BYTES:
                raise ValueError(
                    f"Expected a reason of at most {MAX_REASON_BYTES} bytes, but got {reason!r:.200}. "
                    "Servers drop such a connection, with 1006."
                )
            self._closed = self._disconnected = (code, reason)
            self.inbound.clear()
        else:
            raise RuntimeError(f"Unexpected ASGI message {kind!r}, after the socket was accepted.")

    def _refuse(self) -> None:
        self._is_refused = True
        self._disconnected = (CloseCode.ABNORMAL, "")

    # The client's side

    async def handshake(self, timeout: float) -> Message:
        """Wait until the app has accepted the client, and return the event.

        :raises Refused: the app has refused it.
        """
        if not await self.until(
            lambda: self._accepted is not None or self._is_refused or self.is_done, timeout
        ):
            raise TimeoutError(
                f"The app has neither accepted nor refused the client of {self.scope['path']} within "
                f"{timeout:g} s."
            )
        if self._accepted is not None:
            return self._accepted
        if self._is_refused:
            assert self._response is not None
            status, headers = self._response
            # A bug of the app in its own refusal is more important than the refusal.
            await self.end(timeout)
            self.check_failure()
            raise Refused(status, self._body, headers, self._note)
        self.check_failure()
        raise Refused(
            500,
            b"Internal Server Error",
            datastructures.Headers(),
            "The app returned without accepting the socket; a server answers that with 500.",
        )

    def send_message(self, data: str | bytes, size: int) -> None:
        """Hand a message to the app."""
        if size > MAX_MESSAGE_SIZE:
            self._closed = self._disconnected = (CloseCode.MESSAGE_TOO_BIG, "")
        else:
            key = "text" if isinstance(data, str) else "bytes"
            self.inbound.push({"type": "websocket.receive", key: data}, size)
        self.changed()

    def disconnect(self, code: int, reason: str) -> None:
        """Close the connection from the client's side. Only the first end counts."""
        if self._disconnected is None:
            self._disconnected = (code, reason)
        if self._closed is None:
            self._closed = (code, reason)
        super().leave()

    def leave(self) -> None:
        self.disconnect(CloseCode.NORMAL, "")

    @property
    def is_closed(self) -> bool:
        """Whether the client can send no more."""
        return self.has_left or self._closed is not None or self.is_done

    @property
    def is_over(self) -> bool:
        return self.is_closed

    @property
    def has_ended(self) -> bool:
        return self._disconnected is not None

    def ending(self) -> Exception:
        if self._closed is not None:
            return Closed(*self._closed)
        return Closed(
            CloseCode.ABNORMAL, note="The app ended without closing the socket; a server drops it then."
        )
