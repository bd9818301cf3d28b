"""Refusals: exceptions before the answer of a door, as statuses that are the same on all doors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection

from hubbub.channels.access import Access, NeedsConnection, Target
from hubbub.channels.failures import failure_of
from hubbub.core.publication import check_channel
from hubbub.exceptions import InvalidChannel
from hubbub.node.refusals import CountedClose, CountedRefusal
from hubbub.routes.preflight import with_cors
from hubbub.routes.serving import Entrance, Serving
from hubbub.security.admission import answer


@contextmanager
def refusals(serving: Serving, http: HTTPConnection, entrance: Entrance) -> Iterator[None]:
    """Turn exceptions into an ``HTTPException``, which FastAPI answers, and count them.

    Exceptions of the application's own classes are left to its exception handlers, and errors of the server
    to its log. On a server that cannot answer a handshake with a status, the socket is closed instead.
    """
    try:
        yield
    except Exception as exc:
        refusal = _refusal_of(exc)
        if refusal is None:
            raise
        if not isinstance(exc, CountedRefusal | CountedClose):
            entrance.count(refusal.status_code)
        if isinstance(exc, WebSocketException) and answer(http, refusal) is not refusal:
            # Of admission, or of the application: with the code that it chose.
            raise
    else:
        return
    # Not from within: an exception of validation has the path and the line of a handler in its text.
    if http.scope["type"] == "websocket":
        raise answer(http, refusal)
    raise with_cors(refusal, http, serving.admission)


def _refusal_of(exc: Exception) -> HTTPException | None:
    """Return the refusal for which ``exc`` stands; ``None`` for an error of the server."""
    if isinstance(exc, HTTPException):
        return exc
    if isinstance(exc, NeedsConnection):
        return HTTPException(405, str(exc))
    failure = failure_of(exc)
    return None if failure.is_internal else failure.as_response()


def find_target(access: Access, name: str) -> Target:
    """Return the channel with this name.

    :raises HTTPException: it is not declared (404); no channel can have this name (422); or it requires a
        subscription token, for which doors have no place (403).
    """
    try:
        check_channel(name)
    except InvalidChannel as exc:
        raise HTTPException(422, str(exc)) from exc
    target = access.find(name)
    if target is None:
        raise HTTPException(404, "there is no such channel")
    if target.declaration.requires_token:
        detail = "this channel requires a subscription token, which only the client protocol can carry"
        raise HTTPException(403, detail)
    return target
