"""Presence state: the connections in a channel, as far as this node knows.

Nodes send one another *diffs*: connections that joined, connections that left. A diff may be late, come twice
or be lost. So a node also reads all presence entries of the channel from the engine now and then, and *syncs*
its state with them. From diffs and syncs, :class:`PresenceState` makes joins and leaves that add up: a
connection joins only if it was not present, it leaves only if it was present, and when no diff is under way
the state equals the entries in the engine.

The state has no engine and no clock. It is driven by calls, and each call returns the changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hubbub.types import PresenceEntry


class Changes(NamedTuple):
    """Entries that joined and entries that left.

    A connection in both has left and joined again: as another user, or with another info.
    """

    joined: list[PresenceEntry]
    left: list[PresenceEntry]


class PresenceState:
    """The presence entries of one channel, one for each connection."""

    def __init__(self) -> None:
        self._entries: dict[str, PresenceEntry] = {}
        # During a read of the engine: connections in diffs that came meanwhile. The read may be older than
        # those.
        self._newer: set[str] | None = None

    @property
    def entries(self) -> list[PresenceEntry]:
        """The entries, the oldest first."""
        return list(self._entries.values())

    def apply_diff(self, diff: Iterable[tuple[str, PresenceEntry | None]]) -> Changes:
        """Apply a diff that a node has sent.

        :param diff: connections, each with its entry, or with ``None`` if it left.
        """
        # A connection that joins and leaves within one diff changes nothing.
        last = dict(diff)
        if self._newer is not None:
            self._newer.update(last)
        return self._change(last)

    def begin_sync(self) -> None:
        """Prepare for :meth:`sync`. To be called before the engine is read."""
        self._newer = set()

    def sync(self, found: Mapping[str, PresenceEntry], *, is_complete: bool = True) -> Changes:
        """Take over the entries that the engine has.

        :param found: the entries, by connection.
        :param is_complete: whether connections that are not in ``found`` have left. After an engine has lost
            its data, it takes a moment until all nodes have entered their connections again.
        """
        newer, self._newer = self._newer or set(), None
        diff: dict[str, PresenceEntry | None] = {
            connection: entry for connection, entry in found.items() if connection not in newer
        }
        if is_complete:
            diff |= dict.fromkeys(self._entries.keys() - found.keys() - newer)
        return self._change(diff)

    def _change(self, diff: Mapping[str, PresenceEntry | None]) -> Changes:
        changes = Changes([], [])
        for connection, entry in diff.items():
            before = self._entries.get(connection)
            if entry == before:
                continue
            if before is not None:
                del self._entries[connection]
                changes.left.append(before)
            if entry is not None:
                self._entries[connection] = entry
                changes.joined.append(entry)
        return changes


class Users:
    """The users in one channel: one presence entry for each, however many connections it has.

    The entry is that of one of its connections, the first that was seen. A connection without a user has an
    entry of its own.
    """

    def __init__(self) -> None:
        # By user: the entry, and the ids of all its connections.
        self._users: dict[tuple[str | None, str], tuple[PresenceEntry, set[str]]] = {}

    @property
    def entries(self) -> list[PresenceEntry]:
        """One entry for each user, the oldest first."""
        return [entry for entry, _ in self._users.values()]

    def merge(self, changes: Changes) -> Changes:
        """Return the changes of users that ``changes`` of connections make."""
        left = {entry.connection: entry for entry in changes.left}
        joined = {entry.connection: entry for entry in changes.joined}
        before = {key: self._users.get(key) for key in map(_user, (*changes.left, *changes.joined))}
        # Leaves first: a page that is reloaded leaves and joins, and its user stays.
        for entry in changes.left:
            self._users[_user(entry)][1].discard(entry.connection)
        for entry in changes.joined:
            self._users.setdefault(_user(entry), (entry, set()))[1].add(entry.connection)
        merged = Changes([], [])
        for key, user in before.items():
            if user is None:
                merged.joined.append(self._users[key][0])
                continue
            first, connections = user
            changed = joined.get(first.connection)
            if not connections:
                del self._users[key]
                merged.left.append(first)
            elif changed is not None and _user(changed) == key and left.get(first.connection) == first:
                self._users[key] = (changed, connections)
                merged.left.append(first)
                merged.joined.append(changed)
        return merged


def _user(entry: PresenceEntry) -> tuple[str | None, str]:
    return (entry.user, "") if entry.user is not None else (None, entry.connection)
