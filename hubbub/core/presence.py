"""A roster: who is in a channel, as far as this node knows.

The nodes tell one another who has come and who has left. What they tell may be late, come twice, or not at
all; so now and then a roster is also shown what the engine has. From both it makes one story that adds up:
nobody comes who is there already, nobody leaves who is not there, and when all is quiet it says what the
engine says.

A roster has no engine and no clock. It is told, and shown, and answers with what has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hubbub.types import PresenceEntry


class Changes(NamedTuple):
    """Who has come, and who has left. A connection that is in both has left as the one and come as the other:
    with another user, or with another info."""

    joined: list[PresenceEntry]
    left: list[PresenceEntry]


class PresenceState:
    """Who is in one channel: each connection for itself."""

    def __init__(self) -> None:
        self._members: dict[str, PresenceEntry] = {}
        # While somebody reads what the engine has: the connections that were told about meanwhile. What is
        # read may be older than that.
        self._told: set[str] | None = None

    @property
    def members(self) -> list[PresenceEntry]:
        return list(self._members.values())

    def tell(self, news: Iterable[tuple[str, PresenceEntry | None]]) -> Changes:
        """Take what another node says: connections, each with who has come or with ``None`` if it left."""
        # Who comes and goes in the same breath has not been here.
        last = dict(news)
        if self._told is not None:
            self._told.update(last)
        return self._change(last)

    def begin_reading(self) -> None:
        """Somebody asks the engine, and is about to :meth:`show` what it has."""
        self._told = set()

    def show(self, found: Mapping[str, PresenceEntry], *, is_complete: bool = True) -> Changes:
        """Take what the engine has.

        :param is_complete: whether who is not in there is gone. An engine that has lost its data is told
            anew who is there, which takes a moment.
        """
        told, self._told = self._told or set(), None
        news: dict[str, PresenceEntry | None] = {
            connection: member for connection, member in found.items() if connection not in told
        }
        if is_complete:
            news |= dict.fromkeys(self._members.keys() - found.keys() - told)
        return self._change(news)

    def _change(self, news: Mapping[str, PresenceEntry | None]) -> Changes:
        changes = Changes([], [])
        for connection, member in news.items():
            before = self._members.get(connection)
            if member == before:
                continue
            if before is not None:
                del self._members[connection]
                changes.left.append(before)
            if member is not None:
                self._members[connection] = member
                changes.joined.append(member)
        return changes


class Users:
    """Who is in one channel: each user once, in however many connections. One of them, the first that was
    seen, stands for all. A connection without a user stands for itself."""

    def __init__(self) -> None:
        # Who stands for whom: member and connections.
        self._users: dict[tuple[str | None, str], tuple[PresenceEntry, set[str]]] = {}

    @property
    def members(self) -> list[PresenceEntry]:
        return [member for member, _ in self._users.values()]

    def merge(self, changes: Changes) -> Changes:
        """What ``changes`` of connections mean for users."""
        left = {member.connection: member for member in changes.left}
        joined = {member.connection: member for member in changes.joined}
        before = {key: self._users.get(key) for key in map(_user, (*changes.left, *changes.joined))}
        # Who has left first: a page that is loaded again leaves and comes, and its user stays.
        for member in changes.left:
            self._users[_user(member)][1].discard(member.connection)
        for member in changes.joined:
            self._users.setdefault(_user(member), (member, set()))[1].add(member.connection)
        merged = Changes([], [])
        for key, entry in before.items():
            if entry is None:
                merged.joined.append(self._users[key][0])
                continue
            first, connections = entry
            changed = joined.get(first.connection)
            if not connections:
                del self._users[key]
                merged.left.append(first)
            elif changed is not None and _user(changed) == key and left.get(first.connection) == first:
                self._users[key] = (changed, connections)
                merged.left.append(first)
                merged.joined.append(changed)
        return merged


def _user(member: PresenceEntry) -> tuple[str | None, str]:
    return (member.user, "") if member.user is not None else (None, member.connection)
