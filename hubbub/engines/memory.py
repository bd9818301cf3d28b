"""``memory://``: one process, nothing to install. A publication goes straight to this process's feeds."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import ClassVar

from hubbub.core.publication import START, Position, Publication
from hubbub.engines.base import IDEMPOTENCY_WINDOW, Engine, Page, PresenceChange, Sink, Top, hand_over
from hubbub.exceptions import HubNotRunning, InvalidURL
from hubbub.types import History

#: Seconds that a stream is remembered after its last publication is gone. After that it begins anew.
STREAM_TTL = 3600.0


class Stream:
    """A channel's history."""

    __slots__ = ("epoch", "history", "offset", "publications", "used")

    def __init__(self, history: History) -> None:
        self.epoch = token_hex(4)
        self.offset = 0
        self.history = history
        self.publications: deque[Publication] = deque()
        #: When it was used last.
        self.used = 0.0

    @property
    def position(self) -> Position:
        return Position(self.offset, self.epoch)

    @property
    def top(self) -> Top:
        newest = self.publications[-1] if self.publications else None
        return Top(self.position, newest.id if newest and newest.offset == self.offset else "")

    def append(self, publication: Publication, now: float) -> Publication:
        self.offset += 1
        accepted = publication.at(self.position, now)
        self.publications.append(accepted)
        self.trim(now)
        return accepted

    def trim(self, now: float) -> None:
        """Drop what is too much or too old."""
        self.used = now
        kept, oldest = self.publications, now - self.history.ttl
        while kept and (len(kept) > self.history.size or kept[0].time < oldest):
            kept.popleft()


class MemoryEngine(Engine):
    """Everything in this process's memory, and gone with it."""

    across_processes: ClassVar[bool] = False

    def __init__(self, url: str, namespace: str = "hubbub") -> None:
        super().__init__(url, namespace)
        if url.lower() not in ("memory://", "memory://?alone=yes"):
            # What is behind it is not repeated: it may have been meant for another engine, with a password.
            raise InvalidURL(
                "Expected 'memory://' with nothing behind it, or 'memory://?alone=yes', but got something "
                "else behind it."
            )
        self.is_alone = "?" in url
        self._sink: Sink | None = None
        # The least recently used first.
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        # Their streams are not forgotten, however quiet they are.
        self._subscribed: set[str] = set()
        # (channel, key) -> the position it got, and when; the oldest first.
        self._keys: dict[tuple[str, str], tuple[Position, float]] = {}
        # Channel -> connection -> its data and its lease.
        self._presence: dict[str, dict[str, tuple[bytes, str]]] = {}
        # Lease -> when it lapses.
        self._leases: dict[str, float] = {}

    async def start(self, sink: Sink) -> None:
        self._sink = sink

    async def stop(self) -> None:
        self._sink = None

    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        sink = self._started()
        now = time.time()
        key = (publication.channel, idempotency_key) if idempotency_key is not None else None
        if key is not None:
            self._forget_keys(now)
            if earlier := self._keys.get(key):
                return earlier[0]
        stream = self._stream(publication.channel, history, now)
        if stream is not None:
            publication = stream.append(publication, now)
        if key is not None:
            self._keys[key] = (publication.position, now)
        hand_over(sink, publication)
        return publication.position

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        self._started()
        self._subscribed.add(channel)
        stream = self._stream(channel, history, time.time())
        return Top(START) if stream is None else stream.top

    async def unsubscribe(self, channel: str) -> None:
        self._started()
        self._subscribed.discard(channel)

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> Page:
        self._started()
        stream = self._stream(channel, None, time.time())
        if stream is None:
            return Page((), START)
        if since is not None and since.epoch != stream.epoch and since != START:
            return Page((), stream.position)
        publications = list(stream.publications)
        if reverse:
            publications.reverse()
        if since is not None:
            publications = [
                each
                for each in publications
                if (each.offset < since.offset if reverse else each.offset > since.offset)
            ]
        return Page(publications[:limit], stream.position)

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        self._started()
        streams = [self._streams.get(channel) for channel in channels]
        return [Top(START) if stream is None else stream.top for stream in streams]

    async def remove_history(self, channel: str) -> None:
        self._started()
        if stream := self._streams.pop(channel, None):
            self._streams[channel] = Stream(stream.history)

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        self._started()
        if lease not in self._leases and not begin:
            return False
        self._leases[lease] = time.monotonic() + ttl
        for channel, connection, data in changes:
            if data is None:
                self._leave(channel, connection)
            else:
                self._presence.setdefault(channel, {})[connection] = (data, lease)
        return True

    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        self._started()
        oldest = time.monotonic() - grace
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

    def _stream(self, channel: str, history: History | None, now: float) -> Stream | None:
        """The channel's stream, trimmed; made if ``history`` wants one."""
        stream = self._streams.get(channel)
        if stream is None:
            if history is None:
                return None
            self._forget_streams(now)
            stream = self._streams[channel] = Stream(history)
        elif history is not None:
            stream.history = history
        stream.trim(now)
        self._streams.move_to_end(channel)
        return stream

    def _forget_streams(self, now: float) -> None:
        while self._streams:
            channel, stream = next(iter(self._streams.items()))
            if stream.used + stream.history.ttl + STREAM_TTL > now:
                break
            if channel in self._subscribed:
                stream.used = now
                self._streams.move_to_end(channel)
            else:
                del self._streams[channel]

    def _forget_keys(self, now: float) -> None:
        while self._keys:
            key = next(iter(self._keys))
            if self._keys[key][1] + IDEMPOTENCY_WINDOW > now:
                break
            del self._keys[key]
