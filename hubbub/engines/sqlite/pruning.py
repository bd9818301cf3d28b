"""Pruning: deleting expired rows, publications beyond the size of a history, and unused streams."""

from __future__ import annotations

import sqlite3
from typing import Any

from hubbub.engines.base import STREAM_TTL

#: Seconds that every publication is kept in the file at least, for processes that are behind.
KEEP = 60.0

#: Rows of each kind that one call of :meth:`Pruner.prune` deletes.
PRUNED = 1000

#: Rows of its channel that one publication deletes at most.
TRIMMED = 10

#: Streams that one call of :meth:`Pruner.is_due` examines for rows beyond the size of their history.
SWEPT = 250


class Pruner:
    """Prunes all namespaces of a file.

    The methods that delete rows are called within a transaction. Times are those of the file's clock.

    :param namespace: the namespace of the streams that :meth:`note_read` is called for.
    """

    def __init__(self, connection: sqlite3.Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace
        # The last stream that was examined, and the streams that were found with too many rows.
        self._swept = ("", "")
        self._excessive: set[tuple[str, str]] = set()
        # Channels whose history was read, and whose streams are to be kept for that.
        self._read: set[str] = set()

    def note_read(self, channel: str, used: float, now: float) -> None:
        """Have the stream of a channel kept, because its history was read.

        :param used: when the stream was last used, as the file says.
        """
        # Reading does not write. Often enough, the next call of prune() saves that the stream was used.
        if used + STREAM_TTL / 4 < now:
            self._read.add(channel)

    def is_due(self, now: float) -> bool:
        """Return whether there is something to prune.

        Examines some of the streams each time, so that all streams are examined in turn, also those whose
        publishers have ended.
        """
        if not self._excessive:
            self._sweep(now)
        (found,) = self._execute(
            "SELECT EXISTS (SELECT 1 FROM hubbub_publications WHERE expires < ?1)"
            " OR EXISTS (SELECT 1 FROM hubbub_keys WHERE expires < ?1)",
            now,
        ).fetchone()
        return bool(found or self._excessive or self._read)

    def prune(self, now: float) -> bool:
        """Delete some expired rows, and some beyond the size of their history; return whether more are left.

        There is no hurry: such rows are not read any more.
        """
        expired = self._execute(
            "DELETE FROM hubbub_publications WHERE id IN"
            " (SELECT id FROM hubbub_publications WHERE expires < ? ORDER BY expires, id LIMIT ?)",
            now, PRUNED,
        ).rowcount  # fmt: skip
        keys = self._execute(
            "DELETE FROM hubbub_keys WHERE (namespace, channel, key) IN"
            " (SELECT namespace, channel, key FROM hubbub_keys WHERE expires < ? LIMIT ?)",
            now, PRUNED,
        ).rowcount  # fmt: skip
        left = PRUNED
        while self._excessive and left > 0:
            namespace, channel = key = next(iter(self._excessive))
            row = self._execute(
                "SELECT top - size FROM hubbub_streams WHERE namespace = ? AND channel = ?", *key
            ).fetchone()
            deleted = self.trim(namespace, channel, row[0], now, left) if row else 0
            if deleted < left:
                self._excessive.discard(key)
            left -= deleted
        read, self._read = self._read, set()
        for channel in read:
            self._execute(
                "UPDATE hubbub_streams SET used = max(used, ?) WHERE namespace = ? AND channel = ?",
                now, self._namespace, channel,
            )  # fmt: skip
        return expired == PRUNED or keys == PRUNED or left == 0

    def forget_streams(self, now: float) -> None:
        """Delete some of the streams that have been unused for long after they became empty."""
        self._execute(
            "DELETE FROM hubbub_streams WHERE (namespace, channel) IN"
            " (SELECT namespace, channel FROM hubbub_streams WHERE used + max(ttl, ?) + ? < ? LIMIT ?)",
            KEEP, STREAM_TTL, now, PRUNED,
        )  # fmt: skip

    def trim(self, namespace: str, channel: str, last: int, now: float, limit: int) -> int:
        """Delete at most ``limit`` of the oldest rows of a stream, up to offset ``last``; return how many.

        Rows that processes that are behind may need are left.
        """
        return self._execute(
            "DELETE FROM hubbub_publications WHERE id IN (SELECT id FROM"
            " (SELECT id, time FROM hubbub_publications WHERE namespace = ? AND channel = ? AND offset > 0"
            " AND offset <= ? ORDER BY offset LIMIT ?) WHERE time < ?)",
            namespace, channel, last, limit, now - KEEP,
        ).rowcount  # fmt: skip

    # Internal

    def _sweep(self, now: float) -> None:
        """Find streams whose oldest row is beyond their size, and not kept for processes that are behind."""
        rows = self._execute(
            "SELECT namespace, channel, (SELECT offset <= s.top - s.size AND time < ?"
            " FROM hubbub_publications AS p WHERE p.namespace = s.namespace AND p.channel = s.channel"
            " AND p.offset > 0 ORDER BY offset LIMIT 1)"
            " FROM hubbub_streams AS s WHERE (namespace, channel) > (?, ?)"
            " ORDER BY namespace, channel LIMIT ?",
            now - KEEP, *self._swept, SWEPT,
        ).fetchall()  # fmt: skip
        self._swept = rows[-1][:2] if len(rows) == SWEPT else ("", "")
        self._excessive.update(
            (namespace, channel) for namespace, channel, is_excessive in rows if is_excessive
        )

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)
