"""The types that several modules share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from uuid import UUID

#: How a message goes out: a text frame, a binary frame, or a text frame that holds JSON.
Kind: TypeAlias = Literal["text", "binary", "json"]

#: What happens to a client that reads more slowly than its channels publish; see ``core/outbox.py``.
SlowConsumer: TypeAlias = Literal["disconnect", "drop_oldest", "latest"]

#: What a client is told of who comes to a channel and who leaves it: each connection, or each user once.
JoinLeave: TypeAlias = Literal["connections", "users"]

#: A user, as applications know it. Inside it is its ``str``.
User: TypeAlias = str | int | UUID


def user_id(user: User) -> str:
    """The id of ``user``, as it is compared and as other clients see it.

    :raises TypeError: it is neither ``str`` nor ``int`` nor ``UUID``.
    :raises ValueError: it cannot be written as UTF-8.
    """
    match user:
        case str():
            # Of an enum's member it is the value.
            return check_utf8("a user", str.__str__(user))
        case int() if not isinstance(user, bool):
            return int.__repr__(user)
        case UUID():
            return str(user)
    raise TypeError(f"Expected a user as str, int or UUID, but got {type(user).__name__}.")


def check_utf8(what: str, text: str) -> str:
    """Return ``text`` if it can be written as UTF-8.

    :param what: what it is, for the error message.
    :raises ValueError: it has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"Expected {what} that can be written as UTF-8, but got {text[:64]!r}.") from exc
    return text


def check_count(name: str, value: object, *, least: int, most: int | None = None) -> None:
    """Check that ``value`` is an integer in a range.

    :param name: of the parameter, for the error message.
    :raises TypeError: it is no ``int``. ``bool`` is none.
    :raises ValueError: it is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"Expected {name} as int, but got {value!r}.")
    if value < least:
        bound = "greater than 0" if least == 1 else f"at least {least}"
        raise ValueError(f"Expected {name} to be {bound}, but got {value!r:.50}.")
    if most is not None and value > most:
        raise ValueError(f"Expected {name} to be at most {most:,}, but got {value!r:.50}.")


def check_seconds(name: str, value: object, *, most: float | None = None) -> None:
    """Check that ``value`` is a time: a finite number greater than 0.

    :param name: of the parameter, for the error message.
    :raises TypeError: it is no number. ``bool`` is none.
    :raises ValueError: it is out of range, infinite or not a number.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"Expected {name} as a number of seconds, but got {value!r}.")
    if not value > 0:
        raise ValueError(f"Expected {name} to be greater than 0, but got {value!r}.")
    if math.isinf(value):
        raise ValueError(f"Expected {name} to be finite, but got {value!r}.")
    if most is not None and value > most:
        raise ValueError(f"Expected {name} to be at most {most:,.0f} s, but got {value!r:.50}.")


@dataclass(frozen=True, slots=True)
class PresenceEntry:
    """Somebody in a channel.

    :param connection: the id of the connection.
    :param user: whoever the application says it is.
    :param info: what the application wants others to know, as JSON.
    """

    connection: str
    user: str | None = None
    info: Any = None


@dataclass(frozen=True, slots=True)
class Presence:
    """Who is in a channel.

    :param entries: one for each connection.
    """

    entries: list[PresenceEntry]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[PresenceEntry]:
        return iter(self.entries)

    @property
    def users(self) -> dict[str, list[PresenceEntry]]:
        """The same by user, however many connections each has. Those without a user are left out."""
        users: dict[str, list[PresenceEntry]] = {}
        for member in self.entries:
            if member.user is not None:
                users.setdefault(member.user, []).append(member)
        return users


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a hub can do its work.

    :param ok: whether the engine answers, and takes what is published and who is present.
    :param latency: seconds that the answer, or giving up, took.
    :param engine_outage_seconds: seconds since the engine was lost; 0 while it is connected.
    :param error: a sentence on what is wrong; empty if ``ok``.
    """

    ok: bool
    latency: float
    engine_outage_seconds: float
    error: str
