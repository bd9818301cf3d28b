"""The door for ``new EventSource(url)``: ``GET /channels/{channel}`` streams a channel."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractContextManager
from typing import Protocol

from fastapi import APIRouter
from msgspec import Raw, json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hubbub.channels.access import Access, Target
from hubbub.channels.current import Client
from hubbub.codes import CloseCode
from hubbub.connection.limits import Limits
from hubbub.connection.stream import Stream
from hubbub.connection.subscriptions import presence_entry
from hubbub.core.publication import Position
from hubbub.node.node import Node
from hubbub.routes.parameters import Beginning, read_beginning, read_flag, refuse
from hubbub.servers.stopping import Stopping


class Place(Protocol):
    """The place of one client among the connections of a process."""

    def claim_user(self, user: str | None) -> None:
        """Count the client as one of ``user``.

        :raises HTTPException: the user has too many connections (429).
        """


class EventHost(Protocol):
    """The parts of a hub that this door needs."""

    @property
    def limits(self) -> Limits:
        """The limits of a connection."""

    @property
    def stopping(self) -> Stopping:
        """Ends streams when the server begins to stop."""

    def check(self, request: Request) -> None:
        """Refuse a request by its origin and host.

        :raises HTTPException: it is refused (403).
        """

    def serve(self) -> Awaitable[tuple[Node, Access]]:
        """Return the node and the handlers of the running hub, which is started if necessary."""

    def place(self, node: Node) -> AbstractContextManager[Place]:
        """Take a place for a client, which is given back at the end of the block.

        :raises HTTPException: the process is full (503).
        """

    def position(self, channel: str) -> Awaitable[Position]:
        """Return the position of a channel in the engine."""

    def headers(self, request: Request) -> dict[str, str]:
        """Return more headers for an answer: those of CORS."""

    def refusal(self, request: Request, exc: Exception) -> Exception:
        """Return the exception that FastAPI answers with the status that ``exc`` stands for."""


def add_event_streams(router: APIRouter, host: EventHost) -> None:
    """Add the door to ``router``."""

    async def channel_events(request: Request) -> Response:
        return EventStreamResponse(host, request)

    router.add_api_route(
        "/channels/{channel:path}",
        channel_events,
        methods=["GET"],
        response_model=None,
        include_in_schema=False,
    )


class EventStreamResponse(Response):
    """The answer to one request: an event stream, a snapshot, or a refusal.

    Everything that may refuse the client happens here, before the first byte. Then the response is the
    transport of a connection: ``docs/decisions/0031-a-response-of-its-own.md`` says why it is none of
    Starlette's and FastAPI's.

    :param host: the hub.
    :param request: the request.
    """

    def __init__(self, host: EventHost, request: Request) -> None:
        super().__init__()
        self._host = host
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host, request = self._host, self._request
        response: Response | None = None
        try:
            host.check(request)
            node, access = await host.serve()
            with host.place(node) as place:
                client = Client(request, await access.identify(request))
                place.claim_user(client.identity.user)
                target = access.find(request.path_params["channel"])
                if target is None:
                    raise HTTPException(404, "This channel is not declared.")
                beginning = read_beginning(request, target, has_last_event_id=True)
                if read_flag(request, "snapshot"):
                    response = await self._snapshot(access, client, target)
                else:
                    await self._stream(node, access, client, target, beginning, receive, send)
        except Exception as exc:
            # Nothing has been sent: a stream that has begun does not raise.
            raise host.refusal(request, exc) from exc
        if response is not None:
            await response(scope, receive, send)

    async def _snapshot(self, access: Access, client: Client, target: Target) -> Response:
        """Return the state of a channel with the position from before it."""
        if target.operations.snapshot is None:
            refuse("snapshot", "Expected a channel with a snapshot, but this one has none.")
        await access.subscribe(client, target)
        position = await self._host.position(target.channel.name)
        state = await _state(access, client, target)
        body = json.encode({"id": str(position), "data": Raw(state)})
        headers = {"Cache-Control": "no-store", **self._host.headers(self._request)}
        return Response(body, media_type="application/json", headers=headers)

    async def _stream(
        self,
        node: Node,
        access: Access,
        client: Client,
        target: Target,
        beginning: Beginning,
        receive: Receive,
        send: Send,
    ) -> None:
        await access.subscribe(client, target)
        try:
            headers = self._host.headers(self._request)
            stream = Stream(
                node,
                receive,
                send,
                self._host.limits,
                user=client.identity.user,
                headers=[(name.encode(), value.encode()) for name, value in headers.items()],
            )
            with self._host.stopping.calling(lambda: stream.handle.end(CloseCode.SERVICE_RESTART, "restart")):
                async with stream:
                    await self._join(stream, node, access, client, target, beginning)
                    await stream.departure()
        finally:
            await access.unsubscribed(client, target)
            await access.disconnected(client)

    async def _join(
        self,
        stream: Stream,
        node: Node,
        access: Access,
        client: Client,
        target: Target,
        beginning: Beginning,
    ) -> None:
        channel, identity = target.channel.name, client.identity
        # Presence is the property of the channel, not the wish of the client.
        info = identity.info if target.declaration.presence else None
        await stream.join(
            channel,
            since=beginning.since,
            history=beginning.history,
            snapshot=None if target.operations.snapshot is None else lambda: _state(access, client, target),
            entry=presence_entry(node, channel, stream.id, identity.user, info, beginning.join_leave),
            join_leave=beginning.join_leave,
        )


async def _state(access: Access, client: Client, target: Target) -> bytes:
    state = await access.snapshot(client, target)
    assert state is not None
    return state
