"""Types and checks of arguments that several modules share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

#: How a publication is sent: as a text frame, as a binary frame, or as a text frame that holds JSON.
Kind: TypeAlias = Literal["text", "binary", "json"]

#: The policy for a client that reads more slowly than its channels publish; see ``core/outbox.py``.
SlowConsumer: TypeAlias = Literal["disconnect", "drop_oldest", "latest"]

#: The join and leave events that a client gets: for each connection, or once for each user.
JoinLeave: TypeAlias = Literal["connections", "users"]

#: The reason for which a client, or a message of a client, was refused; counted in :class:`Stats`.
Refusal: TypeAlias = Literal[
    "host",
    "origin",
    "cross_site",
    "connections",
    "user_connections",
    "message_rate",
    "message_size",
    "rate_limit",
    "bad_request",
    "unauthorized",
    "expired",
    "forbidden",
    "unknown_channel",
]

#: A user, as applications may give it. Inside Hubbub it is a ``str``.
User: TypeAlias = str | int | UUID


def user_id(user: User) -> str:
    """Return the id of ``user``, as it is compared and as other clients see it.

    :raises TypeError: ``user`` is neither ``str`` nor ``int`` nor ``UUID``.
    :raises ValueError: ``user`` cannot be written as UTF-8.
    """
    match user:
        case str():
            # For a member of an enum this is its value.
            return check_utf8("a user", str.__str__(user))
        case int() if not isinstance(user, bool):
            return int.__repr__(user)
        case UUID():
            return str(user)
    raise TypeError(f"Expected a user as str, int or UUID, but got {type(user).__name__}.")


def check_utf8(name: str, text: str) -> str:
    """Return ``text`` if it can be written as UTF-8.

    :param name: of the argument, for the error message.
    :raises ValueError: ``text`` has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"Expected {name} that can be written as UTF-8, but got {text[:64]!r}.") from exc
    return text


def check_count(name: str, value: object, *, least: int, most: int | None = None) -> None:
    """Check that ``value`` is an integer in a range.

    :param name: of the parameter, for the error message.
    :raises TypeError: ``value`` is not an ``int``; ``bool`` does not count as one.
    :raises ValueError: ``value`` is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"Expected {name} as int, but got {value!r}.")
    if value < least:
        bound = "greater than 0" if least == 1 else f"at least {least}"
        raise ValueError(f"Expected {name} to be {bound}, but got {value!r:.50}.")
    if most is not None and value > most:
        raise ValueError(f"Expected {name} to be at most {most:,}, but got {value!r:.50}.")


def check_limit(name: str, value: object) -> None:
    """Check that ``value`` is a limit: an integer greater than 0, or ``None`` for no limit.

    :param name: of the parameter, for the error message.
    :raises TypeError: ``value`` is neither an ``int`` nor ``None``.
    :raises ValueError: ``value`` is out of range.
    """
    if value is not None:
        check_count(name, value, least=1)


def check_seconds(name: str, value: object, *, most: float | None = None) -> None:
    """Check that ``value`` is a number of seconds: finite and greater than 0.

    :param name: of the parameter, for the error message.
    :raises TypeError: ``value`` is not a number; ``bool`` does not count as one.
    :raises ValueError: ``value`` is out of range, infinite or NaN.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"Expected {name} as a number of seconds, but got {value!r}.")
    if not value > 0:
        raise ValueError(f"Expected {name} to be greater than 0, but got {value!r}.")
    if math.isinf(value):
        raise ValueError(f"Expected {name} to be finite, but got {value!r}.")
    if most is not None and value > most:
        raise ValueError(f"Expected {name} to be at most {most:,.0f} s, but got {value!r:.50}.")


@dataclass(frozen=True, slots=True, init=False)
class Identity:
    """The identity of a client; returned by the application's ``@hub.on_connect``.

    ::

        @hub.on_connect
        async def connect(session: Annotated[str | None, Cookie()] = None) -> Identity:
            user = await find_user(session)
            return Identity(user=user.id, info={"name": user.name})

    :param user: an ``int`` or a ``UUID`` becomes its ``str``; ``None`` and ``""`` mean no user.
    :param info: data that other clients see in presence, written as JSON of at most some 4,000 bytes.
    :param expires_at: the moment in which the connection is closed with 3005, unless the client refreshes its
        token before: a ``datetime`` with a time zone, or seconds since 1970. ``None``: never.
    :param channels: channels to which the server subscribes the client, in the Centrifuge client protocol.
    :param data: sent to the client in the reply to its ``connect``, in the Centrifuge client protocol.
    :raises TypeError: a parameter has the wrong type.
    :raises ValueError: ``expires_at`` has no time zone, or is not finite.
    """

    user: str | None = None
    info: Any = None
    expires_at: float | None = None
    channels: tuple[str, ...] = ()
    data: Any = None

    def __init__(
        self,
        user: User | None = None,
        info: Any = None,
        expires_at: datetime | float | None = None,
        channels: Iterable[str] = (),
        data: Any = None,
    ) -> None:
        if isinstance(channels, str) or not isinstance(channels, Iterable):
            raise TypeError(f"Expected channels as a list of names, but got {channels!r}.")
        fields = {
            "user": None if user is None or user == "" else user_id(user),
            "info": info,
            "expires_at": _timestamp(expires_at),
            "channels": tuple(channels),
            "data": data,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def _timestamp(moment: datetime | float | None) -> float | None:
    match moment:
        case None:
            return None
        case datetime():
            if moment.tzinfo is None:
                raise ValueError(
                    f"Expected expires_at with a time zone, such as datetime.now(UTC), but got {moment!r}."
                )
            return moment.timestamp()
        case int() | float() if not isinstance(moment, bool):
            if not math.isfinite(moment):
                raise ValueError(f"Expected expires_at to be finite, but got {moment!r}.")
            return float(moment)
    raise TypeError(f"Expected expires_at as datetime or seconds since 1970, but got {moment!r}.")


@dataclass(frozen=True, slots=True)
class PresenceEntry:
    """A connection in a channel with presence.

    :param connection: the id of the connection.
    :param user: its user, if the application has given one.
    :param info: the ``info`` that the connection subscribed with: any JSON value.
    """

    connection: str
    user: str | None = None
    info: Any = None


@dataclass(frozen=True, slots=True)
class Presence:
    """The connections in a channel, in all processes; returned by :meth:`hubbub.Hub.presence`.

    ::

        presence = await hub.presence("room:5")
        print(len(presence), "connections of", sorted(presence.users))
        for entry in presence:
            print(entry.connection, entry.user, entry.info)

    :param entries: one for each connection.
    """

    entries: list[PresenceEntry]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[PresenceEntry]:
        return iter(self.entries)

    @property
    def users(self) -> dict[str, list[PresenceEntry]]:
        """The entries of each user. Connections without a user are left out."""
        users: dict[str, list[PresenceEntry]] = {}
        for entry in self.entries:
            if entry.user is not None:
                users.setdefault(entry.user, []).append(entry)
        return users


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a hub can do its work; returned by :meth:`hubbub.Hub.health`.

    ::

        @app.get("/health")
        async def health(response: Response) -> Health:
            health = await hub.health()
            response.status_code = 200 if health.ok else 503
            return health

    :param ok: whether the engine answers, and accepts publications and presence.
    :param latency: seconds until the engine answered, or until the check gave up; under uvloop, whose clock
        counts milliseconds, 0 for a fast engine.
    :param engine_outage_seconds: seconds since the engine was lost; 0 while it is connected.
    :param error: a sentence that names the problem; empty if ``ok``.
    """

    ok: bool
    latency: float
    engine_outage_seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of a hub in this process; returned by :meth:`hubbub.Hub.stats`.

    ::

        stats = hub.stats()
        print(f"{stats.connections} connections, {stats.backlog} bytes waiting for slow clients")

    :param connections: connected clients.
    :param subscriptions: subscriptions of all connections; a client in two channels counts twice.
    :param channels: channels that have a subscriber.
    :param backlog: bytes that wait for slow clients.
    :param dropped: messages that the policies ``drop_oldest`` and ``latest`` dropped, since the hub started.
    :param slow_disconnects: connections closed because their clients were slow, since the hub started.
    :param engine_outages: outages of the engine, since the hub started.
    :param engine_outage_seconds: seconds since the engine was lost; 0 while it is connected.
    :param refused: refusals since the hub started, by reason; every reason is there, also with 0:

        ====================  ================================================================================
        ``host``              ``Hub(hosts=…)`` does not name the host of the request
        ``origin``            ``Hub(allow_origins=…)`` does not name the web page
        ``cross_site``        another site made a browser send the request, without saying which
        ``connections``       the process has ``Hub(max_connections=…)`` already
        ``user_connections``  the user has ``Hub(max_user_connections=…)`` already
        ``message_rate``      a message beyond ``Hub(max_message_rate=…)``
        ``message_size``      a message of more than ``Hub(max_message_size=…)`` bytes
        ``rate_limit``        beyond a ``RateLimit``, or another 429 of a handler or a dependency
        ``bad_request``       a message or a request that does not validate
        ``unauthorized``      no token, or a wrong one: 401 or 101
        ``expired``           a token expired while the connection was open: 3005
        ``forbidden``         403, 103, or a permission that was withdrawn: 3507
        ``unknown_channel``   a channel that is not declared, or another 404
        ====================  ================================================================================
    :param all_outage_seconds: seconds of all outages of the engine since the hub started, the present one
        included.
    :param published: publications that this process published, since the hub started.
    :param received: publications that the engine handed to channels with a subscriber, since the hub started.
        Publications that the engine has repeated count again.
    :param delivered: publications times the subscribers that they were written to, since the hub started.
        Those that a client has missed and gets when it reconnects do not count.
    :param recoveries: clients that resumed and got all that they had missed, since the hub started.
    :param failed_recoveries: clients that could not resume, because publications are missing in the history,
        since the hub started.
    :param repairs: reads of the history after which a channel had all publications, since the hub started.
    :param failed_repairs: reads of the history in which publications were missing, so that all clients of the
        channel were notified, since the hub started.
    """

    connections: int
    subscriptions: int
    channels: int
    backlog: int
    dropped: int
    slow_disconnects: int
    engine_outages: int
    engine_outage_seconds: float
    refused: dict[str, int]
    all_outage_seconds: float
    published: int
    received: int
    delivered: int
    recoveries: int
    failed_recoveries: int
    repairs: int
    failed_repairs: int
