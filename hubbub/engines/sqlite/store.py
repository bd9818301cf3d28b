"""The store: an open file, its publications, streams and idempotency keys, with plain calls.

One process writes at a time (``BEGIN IMMEDIATE``), so the ids of publications rise in the order of commits: a
process that has read up to an id will never see a smaller id appear.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from typing import Any, NamedTuple

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import START, Position, Publication, pack, unpack
from hubbub.engines.base import IDEMPOTENCY_WINDOW, Top
from hubbub.engines.sqlite import pruning
from hubbub.engines.sqlite.clock import FileClock
from hubbub.engines.sqlite.presence import Presence
from hubbub.engines.sqlite.pruning import Pruner
from hubbub.engines.sqlite.schema import Unusable, upgrade

#: Seconds that SQLite waits for a lock. Short, because the worker has other work while the file is locked.
BUSY_TIMEOUT = 0.01


class Stream(NamedTuple):
    """A channel's history without its publications."""

    epoch: str
    top: int
    size: int
    ttl: float
    used: float

    @property
    def position(self) -> Position:
        return Position(self.top, self.epoch)


class Store:
    """An open file. Used and closed in the thread that opened it.

    The methods that write are called within :meth:`transaction`. All times are those of the file's clock.

    :param path: the path of the file, which is created if it does not exist.
    :param clock: the machine's clock, in seconds since 1970.
    :raises Unusable: there is no such directory, or the file is not one that we can use.
    :raises sqlite3.Error: the file cannot be opened or written to; see :func:`is_busy`.
    """

    def __init__(self, path: str, namespace: str, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._namespace = namespace
        self._machine_clock = clock
        if not os.path.isdir(os.path.dirname(path)):
            raise Unusable("its directory does not exist")
        # We stat the file, and never open it ourselves: when a process closes a file, it loses the locks that
        # its other connections have on it.
        before = _identity(path)
        self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        self.clock = FileClock(self._connection, clock)
        self.presence = Presence(self._connection, namespace)
        self.pruner = Pruner(self._connection, namespace)
        try:
            self._prepare()
            self._identity = _identity(path)
            if self._identity is None or before not in (None, self._identity):
                raise Unusable("it was replaced while it was opened")
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def is_replaced(self) -> bool:
        """Return whether the file was removed, or another is in its place."""
        return _identity(self._path) != self._identity

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes of the block or none; no other process writes meanwhile."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            # Some errors, such as a full disk, have rolled it back already.
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
            raise

    # Publications

    def publish(
        self, publication: Publication, history: History | None, idempotency_key: str | None, now: float
    ) -> Position:
        """Publish as :meth:`~hubbub.engines.Engine.publish` does."""
        channel = publication.channel
        if idempotency_key is not None and (earlier := self._published(channel, idempotency_key, now)):
            return earlier
        stream = self._stream(channel, history, now)
        keep = pruning.KEEP
        if stream is not None:
            stream = stream._replace(top=stream.top + 1, used=now)
            self._save(channel, stream)
            if stream.top > stream.size:
                self.pruner.trim(self._namespace, channel, stream.top - stream.size, now, pruning.TRIMMED)
            # Applications compare a publication's time with the machine's clock, not with the file's.
            publication = publication.at(stream.position, self._machine_clock())
            keep = max(stream.ttl, pruning.KEEP)
        position = publication.position
        self._execute(
            "INSERT INTO hubbub_publications (namespace, channel, offset, time, expires, packed, publication)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            self._namespace, channel, position.offset, now, now + keep, pack(publication), publication.id,
        )  # fmt: skip
        if idempotency_key is not None:
            self._execute(
                "REPLACE INTO hubbub_keys VALUES (?, ?, ?, ?, ?, ?)",
                self._namespace, channel, idempotency_key, *position, now + IDEMPOTENCY_WINDOW,
            )  # fmt: skip
        return position

    def last_id(self) -> int:
        """Return the id of the last publication, even if it has been deleted."""
        row = self._one("SELECT seq FROM sqlite_sequence WHERE name = 'hubbub_publications'")
        return row[0] if row else 0

    def version(self) -> int:
        """Return a number that changes when another connection has written to the file."""
        return int(self._one("PRAGMA data_version")[0])

    def published_after(self, last_id: int, limit: int) -> list[tuple[int, str, str, int]]:
        """Return id, namespace, channel and size in bytes of the publications after ``last_id``, in order.

        Their payloads are not read: SQLite knows the length of a value without reading it.
        """
        return self._execute(
            "SELECT id, namespace, channel, length(packed) FROM hubbub_publications WHERE id > ?"
            " ORDER BY id LIMIT ?",
            last_id, limit,
        ).fetchall()  # fmt: skip

    def packed(self, id_: int) -> bytes | None:
        """Return the packed publication with this id; ``None`` if it has been deleted meanwhile."""
        row = self._one("SELECT packed FROM hubbub_publications WHERE id = ?", id_)
        return row[0] if row else None

    # Streams

    def subscribe(self, channel: str, history: History | None, now: float) -> Top:
        """Return the channel's top; with ``history``, the channel has one from now on."""
        stream = self._stream(channel, history, now)
        if stream is None:
            return Top(START)
        self._save(channel, stream._replace(used=now))
        return self.tops([channel])[0]

    def tops(self, channels: Sequence[str]) -> list[Top]:
        """Read tops as :meth:`~hubbub.engines.Engine.tops` does; of at most 500 channels."""
        rows = self._execute(
            "SELECT channel, top, epoch,"
            " (SELECT publication FROM hubbub_publications AS p WHERE p.namespace = s.namespace"
            " AND p.channel = s.channel AND p.offset = s.top AND p.offset > 0)"
            " FROM hubbub_streams AS s"
            f" WHERE namespace = ? AND channel IN ({','.join('?' * len(channels))})",
            self._namespace, *channels,
        )  # fmt: skip
        tops = {channel: Top(Position(top, epoch), id_ or "") for channel, top, epoch, id_ in rows}
        return [tops.get(channel, Top(START)) for channel in channels]

    def history(
        self, channel: str, since: Position | None, limit: int | None, reverse: bool, now: float
    ) -> HistoryPage:
        """Read as :meth:`~hubbub.engines.Engine.history` does.

        Not to be called within a transaction: it makes its own.
        """
        self._execute("BEGIN")
        try:
            stream = self._find(channel)
            if stream is None:
                return HistoryPage((), START)
            self.pruner.note_read(channel, stream.used, now)
            if since is not None and since.epoch != stream.epoch and since != START:
                return HistoryPage((), stream.position)
            first, last = stream.top - stream.size + 1, stream.top
            if since is not None and reverse:
                last = min(last, since.offset - 1)
            elif since is not None:
                first = max(first, since.offset + 1)
            rows = self._execute(
                "SELECT packed FROM hubbub_publications WHERE namespace = ? AND channel = ? AND offset > 0"
                " AND offset BETWEEN ? AND ? AND time > ?"
                f" ORDER BY offset {'DESC' if reverse else 'ASC'} LIMIT ?",
                self._namespace, channel, first, last, now - stream.ttl, -1 if limit is None else limit,
            ).fetchall()  # fmt: skip
            return HistoryPage([unpack(packed) for (packed,) in rows], stream.position)
        finally:
            if self._connection.in_transaction:
                self._execute("COMMIT")

    def remove_history(self, channel: str, now: float) -> None:
        """Delete the channel's publications, and begin a new epoch."""
        stream = self._find(channel)
        if stream is not None:
            self._delete_history(channel)
            self._save(channel, stream._replace(epoch=token_hex(4), top=0, used=now))

    # Internal

    def _prepare(self) -> None:
        (mode,) = self._one("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise Unusable(f"WAL mode does not work on its disk, and got {mode}")
        # A crash of a process loses nothing. A crash of the machine may lose the last commits, but never
        # leaves half of one.
        self._execute("PRAGMA synchronous = NORMAL")
        # One process at a time creates or upgrades the tables.
        with self.transaction():
            upgrade(self._connection)

    def _published(self, channel: str, idempotency_key: str, now: float) -> Position | None:
        row = self._one(
            "SELECT offset, epoch FROM hubbub_keys"
            " WHERE namespace = ? AND channel = ? AND key = ? AND expires > ?",
            self._namespace, channel, idempotency_key, now,
        )  # fmt: skip
        return Position(*row) if row else None

    def _find(self, channel: str) -> Stream | None:
        row = self._one(
            "SELECT epoch, top, size, ttl, used FROM hubbub_streams WHERE namespace = ? AND channel = ?",
            self._namespace, channel,
        )  # fmt: skip
        return Stream(*row) if row else None

    def _stream(self, channel: str, history: History | None, now: float) -> Stream | None:
        """Return the channel's stream with ``history``, which is not saved yet."""
        stream = self._find(channel)
        if history is None:
            return stream
        if stream is None:
            # A stream that was forgotten may have left rows.
            self._delete_history(channel)
            return Stream(token_hex(4), 0, history.size, history.ttl, now)
        if history.ttl != stream.ttl:
            self._execute(
                "UPDATE hubbub_publications SET expires = time + ?"
                " WHERE namespace = ? AND channel = ? AND offset > 0",
                max(history.ttl, pruning.KEEP), self._namespace, channel,
            )  # fmt: skip
        return stream._replace(size=history.size, ttl=history.ttl)

    def _save(self, channel: str, stream: Stream) -> None:
        self._execute(
            "REPLACE INTO hubbub_streams VALUES (?, ?, ?, ?, ?, ?, ?)", self._namespace, channel, *stream
        )

    def _delete_history(self, channel: str) -> None:
        self._execute(
            "DELETE FROM hubbub_publications WHERE namespace = ? AND channel = ? AND offset > 0",
            self._namespace, channel,
        )  # fmt: skip

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    def _one(self, statement: str, *values: Any) -> Any:
        return self._execute(statement, *values).fetchone()


# Errors


def is_busy(exc: BaseException) -> bool:
    """Return whether ``exc`` only says that another process is writing now."""
    # SQLITE_PROTOCOL: others opened and closed the file so often that it could not be opened in between.
    busy = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
    return isinstance(exc, sqlite3.Error) and _code(exc) in busy


def is_full(exc: BaseException) -> bool:
    """Return whether ``exc`` only says that the disk is full."""
    return isinstance(exc, sqlite3.Error) and _code(exc) == sqlite3.SQLITE_FULL


def _code(exc: sqlite3.Error) -> int:
    # Extended codes have details in the upper bits. Errors of Python's own module have no code.
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
