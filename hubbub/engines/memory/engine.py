"""The engine for ``memory://``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import START, Position, Publication
from hubbub.engines.base import Engine, PresenceChange, Sink, Top, hand_over
from hubbub.engines.memory.idempotency import IdempotencyKeys, digest
from hubbub.engines.memory.presence import Presence
from hubbub.engines.memory.streams import Streams
from hubbub.exceptions import InvalidURL

#: Seconds between two rounds of expiry.
SWEEP_EVERY = 1.0

#: Streams, and idempotency keys, in one round of expiry. If there are more, the next round follows at once.
SWEPT = 1000


class MemoryEngine(Engine):
    """Keeps everything in this process's memory, and loses it when the process ends.

    :param clock: returns seconds, and is never set back.
    :raises InvalidURL: ``url`` is neither ``memory://`` nor ``memory://?alone=yes``.
    """

    across_processes: ClassVar[bool] = False

    def __init__(
        self, url: str, namespace: str = "hubbub", clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(url, namespace)
        if url.lower() not in ("memory://", "memory://?alone=yes"):
            # The rest of the URL is not repeated: it may have been meant for another engine, with a password.
            raise InvalidURL(
                "Expected 'memory://' with nothing behind it, or 'memory://?alone=yes', but got something "
                "else behind it."
            )
        self.is_alone = "?" in url
        self._clock = clock
        #: Public for ``hubbub.testing``, whose fake servers lose data.
        self.streams = Streams(clock)
        self.stored_presence = Presence(clock)
        self._keys = IdempotencyKeys(clock)
        self._timer: asyncio.TimerHandle | None = None

    # Lifecycle

    async def start(self, sink: Sink) -> None:
        self._sink = sink
        self._set_timer()

    async def stop(self) -> None:
        self._sink = None
        self.streams.unsubscribe_all()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Publishing

    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        sink = self._started()
        now = self._clock()
        key = None
        if idempotency_key is not None:
            key = digest(publication.channel, idempotency_key)
            if earlier := self._keys.find(key, now):
                return earlier
        publication = self.streams.append(publication, history, now)
        if key is not None:
            self._keys.add(key, publication.position, now)
        if self._timer is None and (key is not None or publication.offset):
            self._set_timer()
        hand_over(sink, publication)
        return publication.position

    # Subscribing

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        self._started()
        top = self.streams.subscribe(channel, history)
        self._set_timer()
        return top

    async def unsubscribe(self, channel: str) -> None:
        self._started()
        self.streams.unsubscribe(channel)
        self._set_timer()

    # History

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        self._started()
        stream = self.streams.use(channel)
        self._set_timer()
        if stream is None:
            return HistoryPage((), START)
        if since is not None and since.epoch != stream.epoch and since != START:
            return HistoryPage((), stream.position)
        return HistoryPage(stream.read(since, limit, reverse), stream.position)

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        self._started()
        return [self.streams.top(channel) for channel in channels]

    async def remove_history(self, channel: str) -> None:
        self._started()
        self.streams.remove(channel)
        self._set_timer()

    # Presence

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        self._started()
        return self.stored_presence.update(lease, ttl, changes, begin)

    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        self._started()
        return self.stored_presence.expire(grace)

    async def presence(self, channel: str) -> Mapping[str, bytes]:
        self._started()
        return self.stored_presence.entries(channel)

    # Expiry

    def _set_timer(self) -> None:
        """Start the timer of the next round of expiry, if anything can expire."""
        if self._timer is None and (self.streams or self._keys):
            self._timer = asyncio.get_running_loop().call_later(SWEEP_EVERY, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        streams = self.streams.expire(SWEPT)
        keys = self._keys.expire(SWEPT)
        if streams == SWEPT or keys == SWEPT:
            self._timer = asyncio.get_running_loop().call_later(0, self._sweep)
        self._set_timer()
