"""Presence in a file: leases, and the entries under them, with plain calls."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from hubbub.engines.base import PresenceChange


class Presence:
    """The leases and presence entries of a namespace.

    The methods are those of :class:`~hubbub.engines.Engine`; those that write are called within a
    transaction. All times are those of the file's clock, which all processes share.
    """

    def __init__(self, connection: sqlite3.Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    def update(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange], begin: bool, now: float
    ) -> bool:
        """Renew ``lease``, or begin it, and make ``changes`` under it; ``False`` if it does not exist."""
        namespace = self._namespace
        if begin:
            self._connection.execute(
                "REPLACE INTO hubbub_leases VALUES (?, ?, ?)", (namespace, lease, now + ttl)
            )
        else:
            renewed = self._connection.execute(
                "UPDATE hubbub_leases SET lapses = ? WHERE namespace = ? AND lease = ?",
                (now + ttl, namespace, lease),
            )
            if renewed.rowcount == 0:
                return False
        # Of several changes to one entry, only the last one has an effect in the end.
        last = {(channel, connection): data for channel, connection, data in changes}
        self._remove([key for key, data in last.items() if data is None])
        self._connection.executemany(
            "REPLACE INTO hubbub_presence VALUES (?, ?, ?, ?, ?)",
            [(namespace, *key, data, lease) for key, data in last.items() if data is not None],
        )
        return True

    def expire(self, oldest: float) -> Sequence[PresenceChange]:
        """Remove the leases that lapsed before ``oldest``; return the entries that were under them."""
        expired = self._connection.execute(
            "SELECT lease FROM hubbub_leases WHERE namespace = ? AND lapses < ?", (self._namespace, oldest)
        ).fetchall()
        removed: list[tuple[str, str]] = []
        for (lease,) in expired:
            removed += self._connection.execute(
                "SELECT channel, connection FROM hubbub_presence WHERE namespace = ? AND lease = ?",
                (self._namespace, lease),
            ).fetchall()
        self._remove(removed)
        self._connection.executemany(
            "DELETE FROM hubbub_leases WHERE namespace = ? AND lease = ?",
            [(self._namespace, lease) for (lease,) in expired],
        )
        return [PresenceChange(*key, None) for key in removed]

    def entries(self, channel: str) -> Mapping[str, bytes]:
        """Return the data of each connection in ``channel``."""
        return dict(
            self._connection.execute(
                "SELECT connection, data FROM hubbub_presence WHERE namespace = ? AND channel = ?",
                (self._namespace, channel),
            )
        )

    def _remove(self, keys: Sequence[tuple[str, str]]) -> None:
        self._connection.executemany(
            "DELETE FROM hubbub_presence WHERE namespace = ? AND channel = ? AND connection = ?",
            [(self._namespace, *key) for key in keys],
        )
