"""The reader: the channels that a node is subscribed to, and how far it has read each of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from hubbub.core.history import History
from hubbub.core.publication import Publication
from hubbub.engines.postgres.schema import Connection, Schema
from hubbub.engines.postgres.statements import as_publication

#: The most that one statement reads: channels, publications, publications of one channel, and bytes, which
#: the last publication may exceed.
READ_CHANNELS, READ_LIMIT, READ_LIMIT_CHANNEL, READ_BYTES = 1000, 1000, 100, 8_388_608

# For each channel the publications after those that have been seen, all as of one moment.
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

# Streams whose sequence is not the one that was seen last, and channels that have lost the history that they
# were declared with.
_MOVED = """
SELECT c.channel, s.sequence, c.is_declared AND s.size IS NULL AS is_lost
FROM unnest($1::text[], $2::bigint[], $3::boolean[]) AS c (channel, seen, is_declared)
LEFT JOIN {schema}.streams s ON s.channel = c.channel
WHERE s.sequence <> c.seen OR (c.is_declared AND s.size IS NULL)
"""


class Moved(NamedTuple):
    """The signs of lost data that a poll has found.

    :param is_set_back: a stream's sequence is lower than the one that was seen last. Reading continues there.
    :param is_undeclared: a channel has lost its history.
    """

    is_set_back: bool
    is_undeclared: bool


class Subscription:
    """A channel that the node is subscribed to.

    It has the last sequence that was seen, the last one that is known to exist, and the history that the
    channel was declared with.
    """

    __slots__ = ("history", "seen", "top")

    def __init__(self, seen: int) -> None:
        self.seen = seen
        self.top = seen
        self.history: History | None = None


class Reader:
    """Reads the publications of subscribed channels, in those that may have new ones.

    The connection to read with is given by the caller.
    """

    def __init__(self, schema: Schema) -> None:
        self._read = schema.sql(_READ)
        self._moved = schema.sql(_MOVED)
        self._subscriptions: dict[str, Subscription] = {}
        # Channels that may have new publications, in the order in which they were marked.
        self._dirty: dict[str, None] = {}
        #: Set when there is something to read, or a poll is due.
        self.wake = asyncio.Event()
        #: Whether a poll is due at once.
        self.is_poll_due = False

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
        """Read the publications after sequence ``seen``, or after those that have been seen already."""
        subscription = self._subscriptions.get(channel)
        if subscription is None:
            subscription = self._subscriptions[channel] = Subscription(seen)
        subscription.history = history or subscription.history
        self.mark_dirty(channel)

    def unsubscribe(self, channel: str) -> None:
        self._subscriptions.pop(channel, None)

    def mark_dirty(self, channel: str) -> None:
        """Note that ``channel`` may have new publications, if it is subscribed to."""
        if channel in self._subscriptions:
            self._dirty[channel] = None
            self.wake.set()

    def mark_all_dirty(self) -> None:
        for channel in self._subscriptions:
            self.mark_dirty(channel)

    def poll_soon(self) -> None:
        """Have the next poll made at once, to find out whether the connection still works."""
        self.is_poll_due = True
        self.wake.set()

    def forget(self) -> None:
        """Regard all publications in the database as new."""
        for subscription in self._subscriptions.values():
            subscription.seen = subscription.top = 0

    async def poll(self, connection: Connection) -> Moved:
        """Mark the channels that have new publications, without a notification.

        Polls all channels, or a large part of them in turn.
        """
        self.is_poll_due = False
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
                self.mark_dirty(channel)
            elif sequence < subscription.seen:
                subscription.seen = sequence
                is_set_back = True
        return Moved(is_set_back, is_undeclared)

    async def read(self, connection: Connection, hand_over: Callable[[Publication], None]) -> None:
        """Hand over new publications of dirty channels; if there are many, a part of them."""
        channels = list(islice(self._dirty, READ_CHANNELS))
        for channel in channels:
            del self._dirty[channel]
        if self._dirty:
            self.wake.set()
        reading = {each: self._subscriptions[each] for each in channels if each in self._subscriptions}
        if not reading:
            return
        # Read before the statement, which then shows all publications up to there.
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
        # Channels with more to read. First those of which nothing was read, because others had so much.
        counts = Counter(row["channel"] for row in rows)
        is_cut_off = len(rows) == READ_LIMIT or sum(len(row["data"]) for row in rows) >= READ_BYTES
        if is_cut_off:
            for channel in reading:
                if channel not in counts:
                    self.mark_dirty(channel)
        for channel, subscription in reading.items():
            if counts[channel] == READ_LIMIT_CHANNEL or (is_cut_off and counts[channel]):
                self.mark_dirty(channel)
            elif not is_cut_off:
                # Also if none of them is kept any more.
                subscription.seen = max(subscription.seen, tops[channel])
