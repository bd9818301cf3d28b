"""What a node hears: the channels it is subscribed to, and what it has seen of each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import islice

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

# Streams that stand before what has been seen of them.
_SET_BACK = """
SELECT s.channel, s.sequence FROM unnest($1::text[], $2::bigint[]) AS c (channel, seen)
JOIN {schema}.streams s ON s.channel = c.channel AND s.sequence < c.seen
"""


class Subscription:
    """What this node has seen of a channel."""

    __slots__ = ("seen",)

    def __init__(self, seen: int) -> None:
        self.seen = seen


class Reader:
    """Knows where there may be something to read, and reads it. Connections are the caller's."""

    def __init__(self, schema: Schema) -> None:
        self._read = schema.sql(_READ)
        self._set_back = schema.sql(_SET_BACK)
        self._subscriptions: dict[str, Subscription] = {}
        # Channels in which there may be something to read, in the order in which that was found out.
        self._stirred: dict[str, None] = {}
        #: Set when there is something to do.
        self.woken = asyncio.Event()

    @property
    def channels(self) -> list[str]:
        return list(self._subscriptions)

    def subscribe(self, channel: str, seen: int) -> None:
        """Read what comes after the sequence ``seen``, or after what has been seen already."""
        if channel not in self._subscriptions:
            self._subscriptions[channel] = Subscription(seen)
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
            subscription.seen = 0

    async def poll(self, connection: Connection) -> bool:
        """Look by ourselves, as if we had been notified: at all channels, or at many of them in turn.

        :return: whether channels stand before what we have seen of them. They are read on from there.
        """
        channels = list(islice(self._subscriptions, READ_CHANNELS))
        if len(channels) < len(self._subscriptions):
            for channel in channels:
                self._subscriptions[channel] = self._subscriptions.pop(channel)
        seen = [self._subscriptions[channel].seen for channel in channels]
        rows = await connection.fetch(self._set_back, channels, seen)
        for row in rows:
            if subscription := self._subscriptions.get(row["channel"]):
                subscription.seen = row["sequence"]
        for channel in channels:
            self.stir(channel)
        return bool(rows)

    async def read(self, connection: Connection, hand_over: Callable[[Publication], None]) -> None:
        """Hand over what is new where something has stirred; if it is much, a part of it."""
        channels = list(islice(self._stirred, READ_CHANNELS))
        for channel in channels:
            del self._stirred[channel]
        if self._stirred:
            self.woken.set()
        reading = {each: self._subscriptions[each] for each in channels if each in self._subscriptions}
        if not reading:
            # Also an answer that says that the connection is alive.
            await connection.execute("SELECT 1")
            return
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
        for channel, count in counts.items():
            if count == READ_LIMIT_CHANNEL or is_cut_off:
                self.stir(channel)
