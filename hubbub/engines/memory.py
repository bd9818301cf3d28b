"""``memory://``: one process, nothing to install. A publication goes straight to this process's feeds.

Nothing is kept longer than declared, whether the channel is used again or not: each stream that was
published to is on an :class:`Agenda`, under the second in which its oldest publication expires, and later
under the one in which the stream itself is forgotten. A timer looks at what is due.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import islice
from secrets import token_hex
from typing import ClassVar

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import START, Position, Publication
from hubbub.engines.base import IDEMPOTENCY_WINDOW, Engine, PresenceChange, Sink, Top, hand_over
from hubbub.exceptions import HubNotRunning, InvalidURL

logger = logging.getLogger("hubbub.engines.memory")

#: Seconds that a stream is remembered after its last publication is gone. After that it begins anew.
STREAM_TTL = 3600.0

#: Seconds between two looks at what is due.
SWEEP_EVERY = 1.0

#: Streams, and idempotency keys, that one look deals with. If there are more, the next one follows at once.
SWEPT = 1000

#: Idempotency keys remembered. Each takes some 300 bytes, however long it is.
MAX_KEYS = 200_000


class Stream:
    """A channel's history.

    :param epoch: of its positions.
    """

    __slots__ = ("due", "epoch", "history", "offset", "publications", "used")

    def __init__(self, history: History, epoch: str) -> None:
        self.epoch = epoch
        self.offset = 0
        self.history = history
        #: Each with the time at which it was accepted, by the engine's clock.
        self.publications: deque[tuple[float, Publication]] = deque()
        #: When it was used last.
        self.used = 0.0
        #: When it is to be looked at, see :class:`Agenda`.
        self.due = math.inf

    @property
    def position(self) -> Position:
        return Position(self.offset, self.epoch)

    @property
    def top(self) -> Top:
        newest = self.publications[-1][1] if self.publications else None
        return Top(self.position, newest.id if newest and newest.offset == self.offset else "")

    def append(self, publication: Publication, now: float) -> Publication:
        self.offset += 1
        accepted = publication.at(Position(self.offset, self.epoch), time.time())
        self.publications.append((now, accepted))
        self.used = now
        if len(self.publications) > self.history.size:
            self.trim(now)
        return accepted

    def read(self, since: Position | None, limit: int | None, reverse: bool) -> list[Publication]:
        """See :meth:`Engine.history`. Takes time for what is wanted, not for all that is kept."""
        kept = self.publications
        first, last = 0, len(kept)
        if since is not None and kept:
            # Offsets rise by one.
            index = since.offset - kept[0][1].offset
            if reverse:
                last = max(0, min(last, index))
            else:
                first = max(0, min(last, index + 1))
        count = last - first if limit is None else min(limit, last - first)
        if reverse:
            found = islice(reversed(kept), len(kept) - last, len(kept) - last + count)
        else:
            found = islice(kept, first, first + count)
        return [publication for _, publication in found]

    def trim(self, now: float) -> None:
        """Drop what is too much or too old."""
        kept, size, ttl = self.publications, self.history.size, self.history.ttl
        while kept and (len(kept) > size or kept[0][0] + ttl <= now):
            kept.popleft()


class Agenda:
    """Which channels are to be looked at in which second. Each channel is in it once at the most."""

    def __init__(self) -> None:
        self._channels: dict[float, set[str]] = {}
        # The keys of that, the earliest first.
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
        """Take out channels that are due, ``limit`` at the most."""
        taken: list[str] = []
        while self._seconds and self._seconds[0] <= now:
            channels = self._channels[self._seconds[0]]
            while channels and len(taken) < limit:
                taken.append(channels.pop())
            if channels:
                break
            del self._channels[heappop(self._seconds)]
        return taken


class MemoryEngine(Engine):
    """Everything in this process's memory, and gone with it.

    :param clock: seconds of a clock that is never set back.
    """

    across_processes: ClassVar[bool] = False

    def __init__(
        self, url: str, namespace: str = "hubbub", clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(url, namespace)
        if url.lower() not in ("memory://", "memory://?alone=yes"):
            # What is behind it is not repeated: it may have been meant for another engine, with a password.
            raise InvalidURL(
                "Expected 'memory://' with nothing behind it, or 'memory://?alone=yes', but got something "
                "else behind it."
            )
        self.is_alone = "?" in url
        self._sink: Sink | None = None
        self._clock = clock
        self._streams: dict[str, Stream] = {}
        # What streams begin with. It changes when a stream that had it is forgotten or removed, so that no
        # channel has an epoch a second time; all that begin meanwhile may share it. So a channel that was
        # never published to can be forgotten when its last subscriber leaves, and be the same afterwards.
        self._epoch = token_hex(4)
        # Their streams are not forgotten, however quiet they are.
        self._subscribed: set[str] = set()
        self._agenda = Agenda()
        # The digest of channel and key -> the position it got, and when; the oldest first.
        self._keys: dict[bytes, tuple[Position, float]] = {}
        self._has_forgotten_keys = False
        self._timer: asyncio.TimerHandle | None = None
        # Channel -> connection -> its data and its lease.
        self._presence: dict[str, dict[str, tuple[bytes, str]]] = {}
        # Lease -> when it lapses.
        self._leases: dict[str, float] = {}

    async def start(self, sink: Sink) -> None:
        self._sink = sink
        self._wait()

    async def stop(self) -> None:
        self._sink = None
        for channel in list(self._subscribed):
            self._leave_channel(channel)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        sink = self._started()
        now = self._clock()
        channel = publication.channel
        key = None
        if idempotency_key is not None:
            key = _digest(channel, idempotency_key)
            if earlier := self._published(key, now):
                return earlier
        stream = self._stream(channel, history)
        if stream is not None:
            publication = stream.append(publication, now)
            # Otherwise its oldest publication is on the agenda already.
            if now + stream.history.ttl < stream.due:
                self._schedule(channel, stream, now)
        if key is not None:
            self._remember(key, publication.position, now)
        hand_over(sink, publication)
        return publication.position

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        self._started()
        self._subscribed.add(channel)
        stream = self._used(channel, history)
        return Top(START) if stream is None else stream.top

    async def unsubscribe(self, channel: str) -> None:
        self._started()
        self._leave_channel(channel)

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        self._started()
        stream = self._used(channel)
        if stream is None:
            return HistoryPage((), START)
        if since is not None and since.epoch != stream.epoch and since != START:
            return HistoryPage((), stream.position)
        return HistoryPage(stream.read(since, limit, reverse), stream.position)

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        self._started()
        streams = [self._streams.get(channel) for channel in channels]
        return [Top(START) if stream is None else stream.top for stream in streams]

    async def remove_history(self, channel: str) -> None:
        self._started()
        if stream := self._streams.get(channel):
            self._epoch = token_hex(4)
            self._agenda.discard(channel, stream.due)
            stream = self._streams[channel] = Stream(stream.history, self._epoch)
            stream.used = self._clock()
            if channel not in self._subscribed:
                self._schedule(channel, stream, stream.used)

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        self._started()
        if lease not in self._leases and not begin:
            return False
        self._leases[lease] = self._clock() + ttl
        for channel, connection, data in changes:
            if data is None:
                self._leave(channel, connection)
            else:
                self._presence.setdefault(channel, {})[connection] = (data, lease)
        return True

    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        self._started()
        oldest = self._clock() - grace
        lapsed = {lease for lease, lapses in self._leases.items() if lapses < oldest}
        removed = [
            PresenceChange(channel, connection, None)
            for channel, entries in self._presence.items()
            for connection, (_, lease) in entries.items()
            if lease in lapsed
        ]
        for channel, connection, _ in removed:
            self._leave(channel, connection)
        for lease in lapsed:
            del self._leases[lease]
        return removed

    async def presence(self, channel: str) -> Mapping[str, bytes]:
        self._started()
        return {connection: data for connection, (data, _) in self._presence.get(channel, {}).items()}

    # Inside

    def _leave(self, channel: str, connection: str) -> None:
        entries = self._presence.get(channel, {})
        entries.pop(connection, None)
        if not entries:
            self._presence.pop(channel, None)

    def _started(self) -> Sink:
        if self._sink is None:
            raise HubNotRunning("The memory engine has not been started.")
        return self._sink

    def _stream(self, channel: str, history: History | None) -> Stream | None:
        """The channel's stream; made if ``history`` wants one."""
        stream = self._streams.get(channel)
        if history is not None:
            if stream is None:
                stream = self._streams[channel] = Stream(history, self._epoch)
            elif history is not stream.history:
                is_shorter = history.ttl < stream.history.ttl
                stream.history = history
                if is_shorter and stream.offset:
                    self._schedule(channel, stream, self._clock())
        return stream

    def _used(self, channel: str, history: History | None = None) -> Stream | None:
        """The same, trimmed."""
        stream = self._stream(channel, history)
        if stream is not None:
            stream.used = self._clock()
            stream.trim(stream.used)
            if stream.offset:
                self._schedule(channel, stream, stream.used)
        return stream

    def _leave_channel(self, channel: str) -> None:
        self._subscribed.discard(channel)
        stream = self._used(channel)
        if stream is not None and stream.offset == 0:
            self._agenda.discard(channel, stream.due)
            del self._streams[channel]

    def _published(self, key: bytes, now: float) -> Position | None:
        """The position of what was published with the key, if that is not too long ago."""
        position, published = self._keys.get(key, (None, 0.0))
        return position if published + IDEMPOTENCY_WINDOW > now else None

    def _remember(self, key: bytes, position: Position, now: float) -> None:
        # One that has expired gives up its place: they are in the order of their time.
        self._keys.pop(key, None)
        if len(self._keys) >= MAX_KEYS:
            del self._keys[next(iter(self._keys))]
            if not self._has_forgotten_keys:
                self._has_forgotten_keys = True
                logger.warning(
                    "More than %d idempotency keys came within %g s: the oldest are forgotten earlier.",
                    MAX_KEYS,
                    IDEMPOTENCY_WINDOW,
                )
        self._keys[key] = (position, now)
        self._wait()

    # Expiry

    def _schedule(self, channel: str, stream: Stream, now: float) -> None:
        """Have the stream looked at in time, unless it is looked at before that anyway."""
        due = stream.publications[0][0] if stream.publications else stream.used + STREAM_TTL
        # A ttl may be infinite.
        second = math.ceil(min(due + stream.history.ttl, now + STREAM_TTL))
        if second < stream.due:
            self._agenda.discard(channel, stream.due)
            self._agenda.add(channel, second)
            stream.due = second
            self._wait()

    def _wait(self) -> None:
        """Have what is due looked at in a while, if there is anything."""
        if self._timer is None and (self._agenda or self._keys):
            self._timer = asyncio.get_running_loop().call_later(SWEEP_EVERY, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock()
        channels = self._agenda.take(now, SWEPT)
        for channel in channels:
            self._look_at(channel, self._streams[channel], now)
        keys = self._forget_keys(now)
        if len(channels) == SWEPT or keys == SWEPT:
            self._timer = asyncio.get_running_loop().call_later(0, self._sweep)
        self._wait()

    def _look_at(self, channel: str, stream: Stream, now: float) -> None:
        """Drop what has expired of a stream that is due, and the stream if it was not used for long."""
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

    def _forget_keys(self, now: float) -> int:
        """Forget keys that have expired, and return how many."""
        expired: list[bytes] = []
        for key, (_, published) in self._keys.items():
            if published + IDEMPOTENCY_WINDOW > now or len(expired) == SWEPT:
                break
            expired.append(key)
        for key in expired:
            del self._keys[key]
        return len(expired)


def _digest(channel: str, idempotency_key: str) -> bytes:
    """What is remembered of a key, which is of the same size for all."""
    # No channel has a NUL in its name.
    text = f"{channel}\0{idempotency_key}".encode(errors="surrogatepass")
    return blake2b(text, digest_size=16).digest()
