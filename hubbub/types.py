"""The types that several modules share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

#: How a message goes out: a text frame, a binary frame, or a text frame that holds JSON.
Kind: TypeAlias = Literal["text", "binary", "json"]

#: What happens to a client that reads more slowly than its channels publish; see ``core/outbox.py``.
SlowConsumer: TypeAlias = Literal["disconnect", "drop_oldest", "latest"]

#: What a client is told of who comes to a channel and who leaves it: each connection, or each user once.
JoinLeave: TypeAlias = Literal["connections", "users"]


@dataclass(frozen=True, slots=True)
class History:
    """What a channel keeps of what was published to it, so that a client that was away can catch up.

    :param size: publications kept, the newest ones.
    :param ttl: seconds that each of them is kept.
    :raises ValueError: one of them is not greater than 0.
    """

    size: int = 100
    ttl: float = 3600.0

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("ttl", self.ttl)):
            if not value > 0:
                raise ValueError(f"Expected {name} to be greater than 0, but got {value!r}.")


@dataclass(frozen=True, slots=True)
class PresenceMember:
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

    :param members: one for each connection.
    """

    members: list[PresenceMember]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[PresenceMember]:
        return iter(self.members)

    @property
    def users(self) -> dict[str, list[PresenceMember]]:
        """The same by user, however many connections each has. Those without a user are left out."""
        users: dict[str, list[PresenceMember]] = {}
        for member in self.members:
            if member.user is not None:
                users.setdefault(member.user, []).append(member)
        return users


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a hub can do its work.

    :param is_ok: whether the engine answers, and takes what is published and who is present.
    :param latency: seconds that the answer, or giving up, took.
    :param away: seconds for which the engine has been away; 0 if it is there.
    :param trouble: what is wrong, for people.
    """

    is_ok: bool
    latency: float
    away: float
    trouble: str
