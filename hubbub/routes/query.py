"""The query of a door: the parameters of a subscription in its URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from starlette.requests import HTTPConnection

from hubbub.channels.declaration import ChannelDeclaration
from hubbub.channels.injection import InvalidParameters
from hubbub.core.publication import Position, check_position
from hubbub.exceptions import InvalidPosition
from hubbub.types import JoinLeave

#: Publications that a client may ask for; channels keep fewer.
MAX_HISTORY = 1_000_000

_FLAGS: Mapping[str, bool] = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True)
class Subscription:
    """The subscription that a client asks for.

    :param since: go on after this position.
    :param history: without ``since``: begin with this many of the last publications.
    :param positions: whether publications come in envelopes.
    :param presence: the presence events that the client gets.
    :param snapshot: whether the client wants the snapshot alone, as JSON.
    """

    since: Position | None = None
    history: int = 0
    positions: bool = False
    presence: JoinLeave | None = None
    snapshot: bool = False


def parse_query(http: HTTPConnection, declaration: ChannelDeclaration) -> Subscription:
    """Return the subscription that the URL of ``http`` asks for.

    Parameters with other names are the application's.

    :raises InvalidParameters: a parameter does not validate, or does not fit the channel.
    """
    query = http.query_params
    errors: list[dict[str, Any]] = []

    def refuse(name: str, msg: str, kind: str = "value_error") -> None:
        errors.append({"type": kind, "loc": ("query", name), "msg": msg})

    def flag(name: str) -> bool:
        value = _flag(http, name)
        if value is None:
            refuse(name, "Input should be 1 or 0", "bool_parsing")
        return value or False

    since = None
    if (text := query.get("since")) is not None:
        try:
            since = check_position(text)
        except InvalidPosition:
            refuse("since", "Input should be the id of a position, such as 17:c0ffee42, or start")
    history = _count(query.get("history", "0"))
    if history is None:
        refuse("history", f"Input should be a whole number from 0 to {MAX_HISTORY}", "int_parsing")
    elif history and declaration.history is None:
        refuse("history", "The channel has no history")
    presence = query.get("presence")
    if presence is not None and presence not in get_args(JoinLeave):
        refuse("presence", "Input should be connections or users", "literal_error")
    elif presence is not None and not declaration.presence:
        refuse("presence", "The channel has no presence")
    found = Subscription(
        since,
        history or 0,
        flag("positions"),
        presence,  # type: ignore[arg-type]  # checked above
        flag("snapshot"),
    )
    if errors:
        raise InvalidParameters(errors)
    return found


def wants_snapshot(http: HTTPConnection) -> bool:
    """Whether the URL of ``http`` asks for a snapshot alone, before the channel is known."""
    return _flag(http, "snapshot") or False


def _flag(http: HTTPConnection, name: str) -> bool | None:
    """Return the value of a parameter; ``None`` if it is neither true nor false."""
    return _FLAGS.get(http.query_params.get(name, "0").lower())


def _count(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_HISTORY))):
        return None
    count = int(text)
    return count if count <= MAX_HISTORY else None
