"""The door for event streams: ``GET /channels/{channel}``, for ``new EventSource(url)``."""

from __future__ import annotations

from functools import partial

from msgspec import Raw, json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hubbub.channels.access import Access, Target
from hubbub.channels.current import Client
from hubbub.channels.injection import InvalidParameters
from hubbub.connection.stream import Stream
from hubbub.core.publication import Position
from hubbub.exceptions import InvalidPosition
from hubbub.routes.leaving import left, recheck
from hubbub.routes.preflight import cors_headers
from hubbub.routes.query import Subscription, parse_query, wants_snapshot
from hubbub.routes.refusals import find_target, refusals
from hubbub.routes.serving import Entrance, Serving

#: A position that no channel has: an epoch contains no space.
UNRECOVERABLE = Position(0, " ")


class EventDoor:
    """The door for event streams.

    :param serving: the parts of the hub that it uses.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def endpoint(self, request: Request, channel: str) -> Response:
        """Answer with a response that does all the work, because it gets ASGI's ``send``."""
        return EventResponse(self._serving, request, channel)


class EventResponse(Response):
    """The answer to one request: an event stream, a snapshot, or a refusal.

    All that may refuse the client happens before the first byte. Then the response is the transport of a
    connection: ``docs/decisions/0026-a-response-of-its-own.md`` says why it is none of Starlette's and
    FastAPI's.

    :param serving: the parts of the hub that it uses.
    :param request: the request.
    :param channel: the name of the channel.
    """

    def __init__(self, serving: Serving, request: Request, channel: str) -> None:
        super().__init__()
        self._serving = serving
        self._request = request
        self._name = channel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving, client = self._serving, Client(self._request)
        # Exactly then: a stream without a slot would pass the limits.
        opens_connection = not wants_snapshot(self._request)
        with (
            Entrance(serving, client, opens_connection=opens_connection) as entrance,
            refusals(serving, self._request, entrance),
        ):
            # Nothing in here raises when the answer has begun: a stream ends by itself then.
            answer = await self._serve(entrance, client, receive, send)
        if answer is not None:
            await answer(scope, receive, send)

    async def _serve(
        self, entrance: Entrance, client: Client, receive: Receive, send: Send
    ) -> Response | None:
        """Return an answer, unless it has been sent, as an event stream."""
        request = self._request
        access = await entrance.enter()
        target = find_target(access, self._name)
        asked = parse_query(request, target.declaration)
        if asked.snapshot and target.operations.snapshot is None:
            problem = {
                "type": "value_error",
                "loc": ("query", "snapshot"),
                "msg": "The channel has no snapshot",
            }
            raise InvalidParameters([problem])
        await access.subscribe(client, target)
        if asked.snapshot:
            return await self._snapshot(access, client, target)
        try:
            headers = cors_headers(request, self._serving.admission)
            async with self._serving.open_stream(receive, send, client.identity.user, headers) as stream:
                await self._join(stream, access, client, target, asked)
                self._watch(stream, access, client, target, entrance.rechecks)
                await stream.departure()
        finally:
            await left(access, client, target)
        return None

    async def _snapshot(self, access: Access, client: Client, target: Target) -> Response:
        """Return the state of the channel with the position from before it."""
        position = await self._serving.position(self._name)
        state = await access.snapshot(client, target)
        body = json.encode({"id": str(position), "data": Raw(state)})
        headers = {"Cache-Control": "no-store", **cors_headers(self._request, self._serving.admission)}
        return Response(body, media_type="application/json", headers=headers)

    async def _join(
        self, stream: Stream, access: Access, client: Client, target: Target, asked: Subscription
    ) -> None:
        has_snapshot = target.operations.snapshot is not None
        since = _last_event_id(self._request)
        await stream.join(
            self._name,
            since=asked.since if since is None else since,
            # The state has them in it.
            history=0 if has_snapshot else asked.history,
            snapshot=partial(access.snapshot, client, target) if has_snapshot else None,
            info=client.identity.info,
            join_leave=asked.presence,
        )

    def _watch(self, stream: Stream, access: Access, client: Client, target: Target, rechecks: int) -> None:
        """End the stream when its client may stay no longer.

        Called after joining: the first event is that of the subscription.
        """

        async def check_again() -> None:
            if (close := await recheck(access, client, target)) is not None:
                stream.handle.end(*close)

        stream.handle.recheck_with(check_again, rechecks)
        stream.handle.expire_at(
            client.identity.expires_at,
            lambda seconds: stream.handle.send_event("expiring", self._name, {"seconds": seconds}),
        )


def _last_event_id(request: Request) -> Position | None:
    """Return the position that a browser has when it reconnects. It repeats the old URL, with the old one."""
    text = request.headers.get("last-event-id")
    if text is None:
        return None
    try:
        return Position.parse(text)
    except InvalidPosition:
        # An EventSource that got 422 would give up for good. It is told that its position is lost.
        return UNRECOVERABLE
