"""The streams of all channels in memory, and their expiry.

Nothing is kept longer than declared, whether its channel is used again or not: each stream that was
published to is on an :class:`Agenda`, under the second in which its oldest publication expires, and later
under the second in which the stream itself is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from secrets import token_hex

from hubbub.core.history import History
from hubbub.core.publication import START, Publication
from hubbub.engines.base import STREAM_TTL, Top
from hubbub.engines.memory.stream import Stream


class Agenda:
    """Channels by the second in which their streams are due. Each channel is in it at most once."""

    def __init__(self) -> None:
        self._channels: dict[float, set[str]] = {}
        # The keys of _channels as a heap, the earliest first.
        self._seconds: list[float] = []

    def __bool__(self) -> bool:
        return bool(self._seconds)

    def add(self, channel: str, second: float) -> None:
        channels = self._channels.get(second)
        if channels is None:
            channels = self._channels[second] = set()
            heappush(self._seconds, second)
        channels.add(channel)

    def discard(self, channel: str, second: float) -> None:
        if (channels := self._channels.get(second)) is not None:
            channels.discard(channel)

    def take(self, now: float, limit: int) -> list[str]:
        """Take out channels that are due, at most ``limit``."""
        taken: list[str] = []
        while self._seconds and self._seconds[0] <= now:
            channels = self._channels[self._seconds[0]]
            while channels and len(taken) < limit:
                taken.append(channels.pop())
            if channels:
                break
            del self._channels[heappop(self._seconds)]
        return taken


class Streams:
    """The streams of all channels with history.

    :param clock: returns seconds, and is never set back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._streams: dict[str, Stream] = {}
        # The epoch that new streams begin with. It changes when a stream that had it is forgotten or removed,
        # so that no channel has an epoch twice; all streams that begin meanwhile may share it. So the stream
        # of a channel that was never published to can be forgotten when its last subscriber leaves: the next
        # subscriber finds the same position.
        self._epoch = token_hex(4)
        # Their streams are not forgotten, however long no publication comes.
        self._subscribed: set[str] = set()
        self._agenda = Agenda()

    def __bool__(self) -> bool:
        """Whether there are streams to examine at some time."""
        return bool(self._agenda)

    # Publishing and reading

    def append(self, publication: Publication, history: History | None, now: float) -> Publication:
        """Keep ``publication`` if its channel has a history; return it with its position."""
        channel = publication.channel
        # Spelled out, as it is on the way of each publication: most channels are as they were declared last.
        stream = self._streams.get(channel)
        if history is not None and (stream is None or history is not stream.history):
            stream = self._declare(channel, history, stream)
        if stream is None:
            return publication
        publication = stream.append(publication, now)
        # Otherwise the stream is due early enough already, for an earlier publication.
        if now + stream.history.ttl < stream.due:
            self._schedule(channel, stream, now)
        return publication

    def use(self, channel: str, history: History | None = None) -> Stream | None:
        """Return the channel's stream, trimmed; made if ``history`` declares one."""
        stream = self._streams.get(channel)
        if history is not None and (stream is None or history is not stream.history):
            stream = self._declare(channel, history, stream)
        if stream is not None:
            stream.used = self._clock()
            stream.trim(stream.used)
            if stream.offset:
                self._schedule(channel, stream, stream.used)
        return stream

    def find(self, channel: str) -> Stream | None:
        """Return the channel's stream as it is; that is no use of the stream."""
        return self._streams.get(channel)

    def top(self, channel: str) -> Top:
        """Return the channel's top; that is no use of the stream."""
        stream = self._streams.get(channel)
        return Top(START) if stream is None else stream.top

    def remove(self, channel: str) -> None:
        """Drop the channel's publications, and begin a new epoch."""
        if stream := self._streams.get(channel):
            self._epoch = token_hex(4)
            self._agenda.discard(channel, stream.due)
            stream = self._streams[channel] = Stream(stream.history, self._epoch)
            stream.used = self._clock()
            if channel not in self._subscribed:
                self._schedule(channel, stream, stream.used)

    # Subscribing

    def subscribe(self, channel: str, history: History | None) -> Top:
        """Keep the channel's stream until :meth:`unsubscribe`; return its top."""
        self._subscribed.add(channel)
        stream = self.use(channel, history)
        return Top(START) if stream is None else stream.top

    def unsubscribe(self, channel: str) -> None:
        self._subscribed.discard(channel)
        stream = self.use(channel)
        if stream is not None and stream.offset == 0:
            self._agenda.discard(channel, stream.due)
            del self._streams[channel]

    def unsubscribe_all(self) -> None:
        for channel in list(self._subscribed):
            self.unsubscribe(channel)

    # Expiry

    def expire(self, limit: int) -> int:
        """Examine at most ``limit`` streams that are due, and return how many."""
        now = self._clock()
        channels = self._agenda.take(now, limit)
        for channel in channels:
            self._examine(channel, self._streams[channel], now)
        return len(channels)

    def _examine(self, channel: str, stream: Stream, now: float) -> None:
        """Drop expired publications, and the stream if it has been unused for long."""
        stream.due = math.inf
        stream.trim(now)
        if channel in self._subscribed:
            stream.used = now
        if stream.publications or stream.used + stream.history.ttl + STREAM_TTL > now:
            self._schedule(channel, stream, now)
            return
        del self._streams[channel]
        if stream.offset and stream.epoch == self._epoch:
            self._epoch = token_hex(4)

    def _schedule(self, channel: str, stream: Stream, now: float) -> None:
        """Put the stream on the agenda for its next expiry, unless it is due earlier anyway."""
        due = stream.publications[0][0] if stream.publications else stream.used + STREAM_TTL
        # A ttl may be infinite.
        second = math.ceil(min(due + stream.history.ttl, now + STREAM_TTL))
        if second < stream.due:
            self._agenda.discard(channel, stream.due)
            self._agenda.add(channel, second)
            stream.due = second

    # Internal

    def _declare(self, channel: str, history: History, stream: Stream | None) -> Stream:
        """Return the channel's stream, which has ``history`` from now on."""
        if stream is None:
            stream = self._streams[channel] = Stream(history, self._epoch)
            return stream
        is_shorter = history.ttl < stream.history.ttl
        stream.history = history
        if is_shorter and stream.offset:
            self._schedule(channel, stream, self._clock())
        return stream
