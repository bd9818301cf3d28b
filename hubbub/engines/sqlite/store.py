"""What is in the file: streams, publications and idempotency keys, read and written with plain calls.
Presence has a module of its own.

One process writes at a time (``BEGIN IMMEDIATE``), so the ids of publications rise in the order in which they
are committed: whoever has read up to an id will never see a smaller one appear.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from secrets import token_hex
from typing import Any, NamedTuple

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import START, Position, Publication, pack, unpack
from hubbub.engines.base import IDEMPOTENCY_WINDOW, Top
from hubbub.engines.sqlite.presence import Presence
from hubbub.exceptions import EngineUnavailable

#: The version of the tables, which is in ``PRAGMA user_version``, and the statements that lead to each
#: version from the one before it.
SCHEMA_VERSION = 3
STEPS = {
    version: (files(__package__) / "sql" / f"{version}.sql").read_text("utf-8").split(";")
    for version in range(1, SCHEMA_VERSION + 1)
}

#: Seconds that everything published stays in the file at least, for processes that are behind.
KEEP = 60.0

#: Seconds that a stream is remembered after its last publication is gone. After that it begins anew.
STREAM_TTL = 3600.0

#: Seconds that SQLite waits for a lock. Short: whoever finds the file locked does something else meanwhile.
BUSY_TIMEOUT = 0.01

#: Rows that one call of :meth:`Store.prune` deletes of each kind.
PRUNED = 1000

#: Rows that one publish deletes at most, of those that its channel has too many of.
TRIMMED = 10

#: Streams that one call of :meth:`Store.has_to_prune` looks at for rows that they have too many of.
SWEPT = 250

#: Seconds by which the latest time in the file may be behind: it is not written down with each transaction.
CLOCK_LAG = 1.0


class Stream(NamedTuple):
    """A channel's history, but for what is in it."""

    epoch: str
    top: int
    size: int
    ttl: float
    used: float

    @property
    def position(self) -> Position:
        return Position(self.top, self.epoch)


class Store:
    """An open file. To be used, and closed, in the thread that opened it.

    Whatever changes something is called within :meth:`transaction`. All times are seconds of the file's clock
    (:meth:`now`).

    :param path: the file; made if it does not exist.
    :param clock: the machine's clock, in seconds since 1970.
    :raises EngineUnavailable: there is no such directory, or the file is not one that we can use.
    :raises sqlite3.Error: it cannot be opened or written to; see :func:`is_busy`.
    """

    def __init__(self, path: str, namespace: str, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._namespace = namespace
        self._clock = clock
        # Where the sweep over all streams has come to, and the streams it has found with too many rows.
        self._swept = ("", "")
        self._excessive: set[tuple[str, str]] = set()
        # Channels whose history was read, and that are not to be forgotten therefore.
        self._read: set[str] = set()
        if not os.path.isdir(os.path.dirname(path)):
            raise EngineUnavailable(f"Expected the directory of {path!r} to exist, but it does not.")
        # The file is looked at, never opened by ourselves: when a process closes a file, it loses the locks
        # that its other connections have on it.
        before = _identity(path)
        self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        self.presence = Presence(self._connection, namespace)
        try:
            self._prepare()
            self._identity = _identity(path)
            if self._identity is None or before not in (None, self._identity):
                raise EngineUnavailable(f"Expected {path!r} to stay where it is, but it was replaced.")
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def is_replaced(self) -> bool:
        """Whether the file was removed, or another is in its place."""
        return _identity(self._path) != self._identity

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, and nobody else writes meanwhile."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            # Some errors, such as a full disk, have rolled it back already.
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
            raise

    # The clock

    def now(self) -> float:
        """The present time by the file's clock, which goes as the machine's does, but never back.

        If the machine's clock was ahead and is set back, times that were written down meanwhile would
        otherwise lie in the future, and what they date would live longer by as much.
        """
        now, _, _ = self._time()
        return now

    def tick(self) -> float:
        """Like :meth:`now`, and let all processes know it. Called once at the beginning of a transaction."""
        now, ahead, is_news = self._time()
        if is_news:
            self._execute("UPDATE hubbub_clock SET latest = ?, ahead = ?", now, ahead)
        return now

    def _time(self) -> tuple[float, float, bool]:
        """The present time, the seconds it is ahead of the machine's clock, and whether to save them."""
        latest, ahead = self._one("SELECT latest, ahead FROM hubbub_clock")
        clock = self._clock()
        if latest > clock + ahead:
            return latest, latest - clock, True
        return clock + ahead, ahead, clock + ahead >= latest + CLOCK_LAG

    # Publications

    def publish(
        self, publication: Publication, history: History | None, idempotency_key: str | None, now: float
    ) -> Position:
        channel = publication.channel
        if idempotency_key is not None and (earlier := self._published(channel, idempotency_key, now)):
            return earlier
        stream = self._stream(channel, history, now)
        keep = KEEP
        if stream is not None:
            stream = stream._replace(top=stream.top + 1, used=now)
            self._save(channel, stream)
            if stream.top > stream.size:
                self._trim(self._namespace, channel, stream.top - stream.size, now, TRIMMED)
            # Applications compare its time with the machine's clock, not with the file's.
            publication = publication.at(stream.position, self._clock())
            keep = max(stream.ttl, KEEP)
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
        """The id of the last publication, also if it is not there any more."""
        row = self._one("SELECT seq FROM sqlite_sequence WHERE name = 'hubbub_publications'")
        return row[0] if row else 0

    def version(self) -> int:
        """A number that changes when another connection has written something."""
        return int(self._one("PRAGMA data_version")[0])

    def published_after(self, last_id: int, limit: int) -> list[tuple[int, str, str, int]]:
        """Id, namespace, channel and bytes of what comes after ``last_id``, in order, and nothing of its
        payload: SQLite knows the length of a value without reading it."""
        return self._execute(
            "SELECT id, namespace, channel, length(packed) FROM hubbub_publications WHERE id > ?"
            " ORDER BY id LIMIT ?",
            last_id, limit,
        ).fetchall()  # fmt: skip

    def packed(self, id_: int) -> bytes | None:
        """The packed publication with this id; ``None`` if it has been deleted meanwhile."""
        row = self._one("SELECT packed FROM hubbub_publications WHERE id = ?", id_)
        return row[0] if row else None

    # Streams

    def subscribe(self, channel: str, history: History | None, now: float) -> Top:
        """Where the channel stands; with ``history``, it has one from now on."""
        stream = self._stream(channel, history, now)
        if stream is None:
            return Top(START)
        self._save(channel, stream._replace(used=now))
        return self.tops([channel])[0]

    def tops(self, channels: Sequence[str]) -> list[Top]:
        """See :meth:`Engine.tops`; for at most 500 channels."""
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
        """See :meth:`Engine.history`. Not to be called within a transaction: it has one of its own."""
        self._execute("BEGIN")
        try:
            stream = self._find(channel)
            if stream is None:
                return HistoryPage((), START)
            if stream.used + STREAM_TTL / 4 < now:
                self._read.add(channel)
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
        stream = self._find(channel)
        if stream is not None:
            self._delete_history(channel)
            self._save(channel, stream._replace(epoch=token_hex(4), top=0, used=now))

    # Pruning

    def has_to_prune(self, now: float) -> bool:
        """Whether there is something to delete. Looks at some of the streams each time, so that all get their
        turn, also those whose publishers have ended."""
        if not self._excessive:
            self._sweep(now)
        (found,) = self._one(
            "SELECT EXISTS (SELECT 1 FROM hubbub_publications WHERE expires < ?1)"
            " OR EXISTS (SELECT 1 FROM hubbub_keys WHERE expires < ?1)",
            now,
        )
        return bool(found or self._excessive or self._read)

    def prune(self, now: float) -> bool:
        """Delete some of what is too old, in all namespaces, and of what is too much. Nobody reads that any
        more, so there is no hurry. Returns whether there is more."""
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
            row = self._one("SELECT top - size FROM hubbub_streams WHERE namespace = ? AND channel = ?", *key)
            deleted = self._trim(namespace, channel, row[0], now, left) if row else 0
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
        """Delete some of the streams that nobody has used since long after they became empty."""
        self._execute(
            "DELETE FROM hubbub_streams WHERE (namespace, channel) IN"
            " (SELECT namespace, channel FROM hubbub_streams WHERE used + max(ttl, ?) + ? < ? LIMIT ?)",
            KEEP, STREAM_TTL, now, PRUNED,
        )  # fmt: skip

    # Inside

    def _prepare(self) -> None:
        (mode,) = self._one("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise EngineUnavailable(
                f"Expected {self._path!r} to be on a disk that allows WAL, but got {mode}."
            )
        # Safe when a process dies; when the machine does, the last moments may be lost, but nothing is torn.
        self._execute("PRAGMA synchronous = NORMAL")
        # One process at a time makes the tables, or brings them to our version. Older processes that have the
        # file open go on: they look at the version only when they open it.
        with self.transaction():
            (version,) = self._one("PRAGMA user_version")
            if not 0 <= version <= SCHEMA_VERSION:
                raise EngineUnavailable(
                    f"Expected {self._path!r} to have schema version {SCHEMA_VERSION} or an earlier one, but "
                    f"got {version}: it belongs to a newer version of Hubbub, or to something else."
                )
            for step in range(version + 1, SCHEMA_VERSION + 1):
                for statement in STEPS[step]:
                    self._execute(statement)
            # Also if it is that already: only at the first write does SQLite say that a file is read-only.
            self._execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _sweep(self, now: float) -> None:
        """Find streams whose oldest row is one too many, and not kept for processes that are behind."""
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

    def _trim(self, namespace: str, channel: str, last: int, now: float, limit: int) -> int:
        """Delete the oldest rows of a stream, up to offset ``last``, but for those that processes that are
        behind may need; ``limit`` at the most. Returns how many."""
        return self._execute(
            "DELETE FROM hubbub_publications WHERE id IN (SELECT id FROM"
            " (SELECT id, time FROM hubbub_publications WHERE namespace = ? AND channel = ? AND offset > 0"
            " AND offset <= ? ORDER BY offset LIMIT ?) WHERE time < ?)",
            namespace, channel, last, limit, now - KEEP,
        ).rowcount  # fmt: skip

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
        """The channel's stream as ``history`` wants it, not yet saved."""
        stream = self._find(channel)
        if history is None:
            return stream
        if stream is None:
            # One that was forgotten may have left something behind.
            self._delete_history(channel)
            return Stream(token_hex(4), 0, history.size, history.ttl, now)
        if history.ttl != stream.ttl:
            self._execute(
                "UPDATE hubbub_publications SET expires = time + ?"
                " WHERE namespace = ? AND channel = ? AND offset > 0",
                max(history.ttl, KEEP), self._namespace, channel,
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


def is_busy(exc: BaseException) -> bool:
    """Whether it is nothing but another process that is writing just now."""
    # SQLITE_PROTOCOL: others opened and closed the file so often that it could not be opened in between.
    busy = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
    return isinstance(exc, sqlite3.Error) and _code(exc) in busy


def is_full(exc: BaseException) -> bool:
    """Whether there is no room, but nothing else wrong."""
    return isinstance(exc, sqlite3.Error) and _code(exc) == sqlite3.SQLITE_FULL


def _code(exc: sqlite3.Error) -> int:
    # The extended ones tell the details in the upper bits. Errors of Python's own module have none.
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
