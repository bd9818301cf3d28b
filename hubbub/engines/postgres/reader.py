"""What a node hears: the channels it is subscribed to, and what it has seen of each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from hubbub.core.history import History
from hubbub.core.publication import Publication
from hubbub.engines.postgres.rows import as_publication
from hubbub.engines.postgres.schema import Connection, Schema

#: What is read at once: channels, publications, publications of one channel, bytes (and one of them more).
READ_CHANNELS, READ_LIMIT, READ_LIMIT_CHANNEL, READ_BYTES = 1000, 1000, 100, 8_388_608

# For each channel what comes after what has been seen, all as of one moment.
_READ = """
SELECT *, extract(epoch FROM time)::float8 AS seconds FROM (
    SELECT p.*, c.number,
        sum(octet_length(p.data)) OVER (ORDER BY c.number, p.sequence) - octet_length(p.data) AS bytes_before
    FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS c (channel, seen, number)
    CROSS JOIN LATERAL (
        SELECT * FROM {schema}.publications o
        WHERE o.channel = c.channel AND o.sequence > c.seen ORDER BY o.sequence LIMIT $3
    ) AS p
) AS found
WHERE bytes_before < $5
ORDER BY number, sequence LIMIT $4
"""

# Streams that do not stand where they were seen last, and channels that have lost the history that they were
# declared with.
_MOVED = """
SELECT c.channel, s.sequence, c.is_declared AND s.size IS NULL AS is_lost
FROM unnest($1::text[], $2::bigint[], $3::boolean[]) AS c (channel, seen, is_declared)
LEFT JOIN {schema}.streams s ON s.channel = c.channel
WHERE s.sequence <> c.seen OR (c.is_declared AND s.size IS NULL)
"""


class Moved(NamedTuple):
    """What has happened to the database, apart from publications.

    :param is_set_back: a stream stands before what was seen of it. It is read on from there.
    :param is_undeclared: a channel has lost its history.
    """

    is_set_back: bool
    is_undeclared: bool


class Subscription:
    """What this node has seen of a channel, how far the channel is known to have come, and the history that
    it was declared with."""

    __slots__ = ("history", "seen", "top")

    def __init__(self, seen: int) -> None:
        self.seen = seen
        self.top = seen
        self.history: History | None = None


class Reader:
    """Knows where there may be something to read, and reads it. Connections are the caller's."""

    def __init__(self, schema: Schema) -> None:
        self._read = schema.sql(_READ)
        self._moved = schema.sql(_MOVED)
        self._subscriptions: dict[str, Subscription] = {}
        # Channels in which there may be something to read, in the order in which that was found out.
        self._stirred: dict[str, None] = {}
        #: Set when there is something to do.
        self.woken = asyncio.Event()

    @property
    def channels(self) -> list[str]:
        return list(self._subscriptions)

    @property
    def declared(self) -> dict[str, History]:
        """The channels that were declared with a history."""
        return {
            channel: each.history for channel, each in self._subscriptions.items() if each.history is not None
        }

    def subscribe(self, channel: str, history: History | None, seen: int) -> None:
        """Read what comes after the sequence ``seen``, or after what has been seen already."""
        subscription = self._subscriptions.get(channel)
        if subscription is None:
            subscription = self._subscriptions[channel] = Subscription(seen)
        subscription.history = history or subscription.history
        self.stir(channel)

    def unsubscribe(self, channel: str) -> None:
        self._subscriptions.pop(channel, None)

    def stir(self, channel: str) -> None:
        """There may be something to read in ``channel``, if it is subscribed to."""
        if channel in self._subscriptions:
            self._stirred[channel] = None
            self.woken.set()

    def stir_all(self) -> None:
        for channel in self._subscriptions:
            self.stir(channel)

    def forget(self) -> None:
        """All that is in the database is new to us."""
        for subscription in self._subscriptions.values():
            subscription.seen = subscription.top = 0

    async def poll(self, connection: Connection) -> Moved:
        """Look by ourselves, as if we had been notified: at all channels, or at many of them in turn."""
        channels = list(islice(self._subscriptions, READ_CHANNELS))
        if len(channels) < len(self._subscriptions):
            for channel in channels:
                self._subscriptions[channel] = self._subscriptions.pop(channel)
        subscriptions = {channel: self._subscriptions[channel] for channel in channels}
        seen = [each.seen for each in subscriptions.values()]
        declared = [each.history is not None for each in subscriptions.values()]
        is_set_back = is_undeclared = False
        for channel, sequence, is_lost in await connection.fetch(self._moved, channels, seen, declared):
            subscription = subscriptions[channel]
            if self._subscriptions.get(channel) is not subscription:
                continue
            is_undeclared = is_undeclared or is_lost
            if sequence is None:
                continue
            subscription.top = sequence
            if sequence > subscription.seen:
                self.stir(channel)
            elif sequence < subscription.seen:
                subscription.seen = sequence
                is_set_back = True
        return Moved(is_set_back, is_undeclared)

    async def read(self, connection: Connection, hand_over: Callable[[Publication], None]) -> None:
        """Hand over what is new where something has stirred; if it is much, a part of it."""
        channels = list(islice(self._stirred, READ_CHANNELS))
        for channel in channels:
            del self._stirred[channel]
        if self._stirred:
            self.woken.set()
        reading = {each: self._subscriptions[each] for each in channels if each in self._subscriptions}
        if not reading:
            return
        # As far as they are known to have come: what is found below shows all that is up to there.
        tops = {channel: each.top for channel, each in reading.items()}
        rows = await connection.fetch(
            self._read,
            list(reading),
            [each.seen for each in reading.values()],
            READ_LIMIT_CHANNEL,
            READ_LIMIT,
            READ_BYTES,
        )
        for row in rows:
            subscription = reading[row["channel"]]
            if (
                self._subscriptions.get(row["channel"]) is subscription
                and row["sequence"] > subscription.seen
            ):
                subscription.seen = row["sequence"]
                hand_over(as_publication(row))
        # Where there may be more; those first that got nothing because the others had so much.
        counts = Counter(row["channel"] for row in rows)
        is_cut_off = len(rows) == READ_LIMIT or sum(len(row["data"]) for row in rows) >= READ_BYTES
        if is_cut_off:
            for channel in reading:
                if channel not in counts:
                    self.stir(channel)
        for channel, subscription in reading.items():
            if counts[channel] == READ_LIMIT_CHANNEL or (is_cut_off and counts[channel]):
                self.stir(channel)
            elif not is_cut_off:
                # Also where nothing is kept any more.
                subscription.seen = max(subscription.seen, tops[channel])
