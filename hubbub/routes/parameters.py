"""Parameters: the query and the headers by which a client says how its subscription through a door begins."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn, cast, get_args

from starlette.requests import HTTPConnection

from hubbub.channels.access import Target
from hubbub.channels.injection import InvalidParameters
from hubbub.core.publication import Position
from hubbub.exceptions import InvalidPosition
from hubbub.types import JoinLeave

#: A position that no channel has: no epoch contains a space.
UNRECOVERABLE = Position(0, " ")

# More publications than any channel keeps.
_COUNT = re.compile("[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a subscription begins.

    :param since: the position from which the client resumes.
    :param history: without ``since``: how many of the last publications the client gets first.
    :param join_leave: the presence events that the client gets.
    """

    since: Position | None
    history: int
    join_leave: JoinLeave | None


def read_beginning(http: HTTPConnection, target: Target, *, has_last_event_id: bool) -> Beginning:
    """Return how a client wants to begin in a channel.

    :param target: the channel.
    :param has_last_event_id: whether the header ``Last-Event-ID`` counts, before ``since``: a browser that
        reconnects sends it, and repeats the old URL.
    :raises InvalidParameters: a parameter is malformed, or can have no effect in this channel.
    """
    since = _last_event_id(http) if has_last_event_id else None
    return Beginning(
        _since(http) if since is None else since, _history(http, target), _join_leave(http, target)
    )


def read_flag(http: HTTPConnection, name: str) -> bool:
    """Return a parameter that is 1 or 0; 0 if the query has none.

    :raises InvalidParameters: it is neither.
    """
    text = http.query_params.get(name, "0")
    if text not in ("0", "1"):
        refuse(name, "Expected 1 or 0.")
    return text == "1"


def refuse(name: str, message: str) -> NoReturn:
    """Refuse a parameter of the query.

    :raises InvalidParameters: always.
    """
    raise InvalidParameters([{"loc": ("query", name), "msg": message, "type": "value_error"}])


def _last_event_id(http: HTTPConnection) -> Position | None:
    text = http.headers.get("last-event-id")
    if text is None:
        return None
    try:
        return Position.parse(text)
    except InvalidPosition:
        # An EventSource that got 422 would give up for good. It is told that its position is lost.
        return UNRECOVERABLE


def _since(http: HTTPConnection) -> Position | None:
    text = http.query_params.get("since")
    if text is None:
        return None
    try:
        return Position.parse(text)
    except InvalidPosition as exc:
        refuse("since", str(exc))


def _history(http: HTTPConnection, target: Target) -> int:
    text = http.query_params.get("history")
    if text is None:
        return 0
    if not _COUNT.fullmatch(text):
        refuse("history", "Expected a number of publications.")
    history = int(text)
    if history and target.declaration.history is None:
        refuse("history", "Expected a channel with a history, but this one has none.")
    if history and target.operations.snapshot is not None:
        refuse("history", "Expected a channel without a snapshot, but this one begins with its state.")
    return history


def _join_leave(http: HTTPConnection, target: Target) -> JoinLeave | None:
    text = http.query_params.get("presence")
    if text is None:
        return None
    if text not in get_args(JoinLeave):
        refuse("presence", "Expected 'connections' or 'users'.")
    if not target.declaration.presence:
        refuse("presence", "Expected a channel with presence, but this one has none.")
    return cast(JoinLeave, text)
