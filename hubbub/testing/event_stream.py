"""Event streams for tests: a client of server-sent events, with a deadline on every wait."""

from __future__ import annotations

import codecs
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self, TypeVar, overload

from pydantic import TypeAdapter
from starlette import datastructures
from starlette.types import ASGIApp, Message, Scope

from hubbub.testing.app_lifespan import lifespan
from hubbub.testing.exchange import Deadline, Exchange
from hubbub.testing.failures import MAX_BODY, Closed, Refused
from hubbub.testing.messages import decode, describe
from hubbub.testing.request import Headers, Query, request_scope
from hubbub.types import check_seconds

T = TypeVar("T")

_LINE_END = re.compile(r"\r\n|\n|\r")


class Event(NamedTuple):
    """An event of a stream.

    :param name: the event's name, for ``addEventListener``; ``"message"`` unless the stream gives one.
    :param data: its data lines, with a line end between them.
    :param id: the last id that the stream has given, also in an earlier event.
    """

    name: str
    data: str
    id: str


@asynccontextmanager
async def events(
    app: ASGIApp,
    channel: str | None = None,
    *,
    path: str | None = None,
    headers: Headers | None = None,
    cookies: Mapping[str, str] | None = None,
    query: Query | None = None,
    last_event_id: str | None = None,
    timeout: float = 5.0,
) -> AsyncIterator[EventStream]:
    """Open a stream of server-sent events, as ``new EventSource(url)`` does, without a server.

    ::

        async with events(app, "room:7") as stream:
            subscribed = await stream.receive_event()
            assert subscribed.name == "subscribed"
            await hub.publish("room:7", {"text": "hi"})
            assert await stream.receive() == {"text": "hi"}

    The parameters are those of :func:`hubbub.testing.connect`, and so are the lifespan of the app and the
    exceptions. ``httpx2.ASGITransport`` waits for the end of a response, and so cannot read an endless one.

    :param last_event_id: the header ``Last-Event-ID``, which a browser sends when it reconnects.
    :raises Refused: the answer is not a stream of events with status 200.
    """
    check_seconds("timeout", timeout)
    fields = list(headers.items() if isinstance(headers, Mapping) else headers or ())
    if last_event_id is not None:
        fields.append(("last-event-id", last_event_id))
    async with lifespan(app) as state:
        scope = request_scope(
            "http", app, state, channel=channel, path=path, headers=fields, cookies=cookies, query=query
        )
        exchange = ResponseExchange(app, scope)
        async with exchange.running(timeout):
            yield EventStream(exchange, await exchange.begin(timeout), timeout, last_event_id or "")


class EventStream:
    """A stream of events; :func:`events` makes it."""

    def __init__(
        self,
        exchange: ResponseExchange,
        headers: datastructures.Headers,
        timeout: float,
        last_event_id: str,
    ) -> None:
        self._exchange = exchange
        self._timeout = timeout
        #: The headers of the response.
        self.headers = headers
        self._parser = Parser(last_event_id)
        self._events: list[Event] = []
        self._received = (0, "nothing")
        #: The id that a browser would send as ``Last-Event-ID`` when it reconnects.
        self.last_event_id = last_event_id

    def __repr__(self) -> str:
        return f"<EventStream {self._exchange.scope['path']}>"

    @property
    def retry(self) -> int | None:
        """Milliseconds until a browser reconnects, if the stream has given them."""
        return self._parser.retry

    @overload
    async def receive(self, model: None = None, *, timeout: float | None = None) -> Any: ...
    @overload
    async def receive(self, model: type[T], *, timeout: float | None = None) -> T: ...
    @overload
    async def receive(self, model: TypeAdapter[T], *, timeout: float | None = None) -> T: ...
    @overload
    async def receive(self, model: Any, *, timeout: float | None = None) -> Any: ...
    async def receive(self, model: Any = None, *, timeout: float | None = None) -> Any:
        """Wait for the next event without a name, and return its data. Events with names are skipped.

        :param model: see :meth:`hubbub.testing.Client.receive`.
        :param timeout: seconds; ``None`` for those of :func:`events`.
        :raises AssertionError: the data do not fit ``model``.
        :raises Closed: the stream has ended.
        :raises TimeoutError: no event arrives in time.
        :raises Exception: the app has failed; it is the exception of the app.
        """
        deadline = self._deadline(timeout)
        while (event := await self._next(deadline)).name != "message":
            pass
        return decode(event.data, model)

    async def receive_event(self, *, timeout: float | None = None) -> Event:
        """Wait for the next event, with or without a name; see :meth:`receive`."""
        return await self._next(self._deadline(timeout))

    def __aiter__(self) -> Self:
        """Iterate over all events, until the stream ends."""
        return self

    async def __anext__(self) -> Event:
        try:
            return await self.receive_event()
        except Closed:
            raise StopAsyncIteration from None

    # Internal

    def _deadline(self, timeout: float | None) -> Deadline:
        seconds = self._timeout if timeout is None else timeout
        check_seconds("timeout", seconds)
        return Deadline(seconds)

    async def _next(self, deadline: Deadline) -> Event:
        # All of an event, and all events that are skipped, within one deadline: comments may come for ever.
        while not self._events:
            if not deadline.left:
                raise TimeoutError(self._late(deadline))
            chunk = await self._exchange.take(deadline.left, lambda: self._late(deadline))
            self._events = self._parser.feed(chunk)
        event = self._events.pop(0)
        self._received = (self._received[0] + 1, describe(event.data))
        self.last_event_id = event.id
        return event

    def _late(self, deadline: Deadline) -> str:
        count, last = self._received
        return (
            f"No event arrived within {deadline.seconds:g} s; {self!r} has received {count} events, the last "
            f"one {last}."
        )


class Parser:
    """Parses a stream of events, as browsers do (HTML standard, "Interpreting an event stream")."""

    def __init__(self, last_event_id: str = "") -> None:
        #: Milliseconds until a browser reconnects.
        self.retry: int | None = None
        self._id = last_event_id
        self._name = ""
        self._data: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes of the stream, and return the events that are complete."""
        self._text += self._decoder.decode(chunk)
        found = []
        while (end := _LINE_END.search(self._text)) is not None:
            if end[0] == "\r" and end.end() == len(self._text):
                # The line feed of this line end may be on its way.
                break
            line, self._text = self._text[: end.start()], self._text[end.end() :]
            if line:
                self._take(line)
            elif self._data:
                found.append(Event(self._name or "message", "\n".join(self._data), self._id))
                self._name, self._data = "", []
            else:
                self._name = ""
        return found

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry = int(value)


class ResponseExchange(Exchange[bytes]):
    """One GET request, and its response in pieces, as uvicorn has it."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        super().__init__(app, scope)
        self._has_requested = False
        self._start: tuple[int, datastructures.Headers] | None = None
        self._is_complete = False

    # The app's side

    async def receive(self) -> Message:
        if not self._has_requested:
            self._has_requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.until(lambda: self.has_left or self._is_complete)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.room()
        kind = message["type"]
        if self._is_complete or (kind == "http.response.start") != (self._start is None):
            raise RuntimeError(f"Unexpected ASGI message {kind!r}.")
        if kind == "http.response.start":
            headers = datastructures.Headers(raw=list(message.get("headers") or ()))
            self._start = (message["status"], headers)
        elif body := message.get("body", b""):
            self.outbound.push(body, len(body))
        if kind == "http.response.body" and not message.get("more_body", False):
            self._is_complete = True
        self.changed()

    # The client's side

    async def begin(self, timeout: float) -> datastructures.Headers:
        """Wait until the stream begins, and return the headers of the response.

        :raises Refused: the answer is something else.
        """
        if not await self.until(lambda: self._start is not None or self.is_done, timeout):
            raise TimeoutError(f"The app did not answer {self.scope['path']} within {timeout:g} s.")
        if self._start is None:
            self.check_failure()
            raise Refused(500, b"Internal Server Error", datastructures.Headers(), "The app did not answer.")
        status, headers = self._start
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if status == 200 and kind == "text/event-stream":
            return headers
        note = "" if status != 200 else f"Expected text/event-stream, but got {kind or 'no type'}."
        raise Refused(status, await self._body(Deadline(timeout)), headers, note)

    async def _body(self, deadline: Deadline) -> bytes:
        body = b""
        while len(body) <= MAX_BODY:
            try:
                body += await self.take(
                    deadline.left,
                    lambda: f"The app did not complete its response within {deadline.seconds:g} s.",
                )
            except Closed:
                break
        return body

    @property
    def is_over(self) -> bool:
        return self.has_left or self._is_complete or self.is_done

    @property
    def has_ended(self) -> bool:
        return self.has_left or self._is_complete

    def ending(self) -> Exception:
        if self._is_complete or self.has_left:
            return Closed(None)
        return Closed(None, note="The app returned before the end of its response.")
