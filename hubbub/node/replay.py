"""Replay: reads the publications that subscribers have missed, and writes them as the clients take them.

A client that reconnects may have missed many megabytes. Each piece is read and written only when the client
has taken the one before, so the bytes that wait for it stay below the limit of its outbox, however much it
has missed and however many clients reconnect at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hubbub.core.feed import Feed
from hubbub.core.forms import Form
from hubbub.core.frames import Frame
from hubbub.core.history import HistoryPage
from hubbub.core.publication import Position
from hubbub.core.resume import Resume
from hubbub.core.subscriber import Start, Subscriber
from hubbub.engines.reconnect import Backoff
from hubbub.exceptions import EngineUnavailable, Unrecoverable
from hubbub.node.clock import Clock

#: Bytes that are written at a time; about as many are read at a time. A single publication may be larger.
PIECE = 65_536

#: Publications in the first read of a channel, when their size is not known.
FIRST_READ = 16

#: Publications in one read, at most.
MAX_READ = 1000

#: Seconds for which a page that was read for one subscriber is also used for others.
FRESH = 1.0


class Replay:
    """The replay of one channel. Subscribers that join at the same time share its reads.

    :param feed: the feed of the channel.
    :param read: reads the publications after a position, at most so many, while the feed is not being
        repaired.
    :param clock: by which a page that was read is fresh.
    """

    def __init__(
        self, feed: Feed, read: Callable[[Position, int], Awaitable[HistoryPage]], clock: Clock
    ) -> None:
        #: The feed of the channel.
        self.feed = feed
        self._read_page = read
        self._clock = clock
        # One read at a time: its page is kept for other subscribers, here and in the feed's recent buffer.
        self._lock = asyncio.Lock()
        self._after: Position | None = None
        self._frames: Sequence[Frame] = ()
        self._read_at = 0.0
        self._limit = FIRST_READ

    async def join(
        self,
        subscriber: Subscriber,
        form: Form,
        since: Position | None,
        history: int,
        is_wanted: Callable[[], bool],
        *,
        start: Start | None = None,
        reports_recovery: bool | None = None,
    ) -> Position:
        """Write the publications that ``subscriber`` has missed, then add it to the feed.

        Each step is one of :class:`~hubbub.core.resume.Resume`.

        :param form: how publications are written to it.
        :param since: the position from which it resumes.
        :param history: instead, how many of the last publications are written first.
        :param is_wanted: returns whether it is still to be added.
        :param start: see :class:`~hubbub.core.resume.Resume`, and so for ``reports_recovery``.
        :return: the position up to which everything has been written to it.
        :raises Unrecoverable: the history does not reach back to ``since``, and that is not reported.
        :raises EngineUnavailable: the engine cannot be reached, and nothing has been written.
        """
        resume = Resume(
            self.feed, subscriber, form, since, history, start=start, reports_recovery=reports_recovery
        )
        backoff = Backoff()
        while (room := await subscriber.ready()) and is_wanted():
            # Nothing is awaited in a step: with the last one, the subscriber is added to the feed.
            try:
                after = resume.step(min(room, PIECE) if subscriber.recovers_in_pieces else room)
            except Unrecoverable:
                self.feed.counts.failed_recoveries += 1
                raise
            if resume.is_complete:
                break
            if after is None:
                # A client that takes everything at once must not keep the loop from the others.
                await asyncio.sleep(0)
                continue
            try:
                if (found := await self._read(after)) is not None:
                    resume.take(*found)
                backoff.reset()
            except EngineUnavailable:
                if not resume.has_begun:
                    raise
                # It has begun: like a subscriber in the feed, it continues after the outage.
                await backoff.wait()
        # A subscriber that has left meanwhile has neither recovered nor failed.
        if resume.is_complete and resume.recovered is not None:
            if resume.recovered:
                self.feed.counts.recoveries += 1
            else:
                self.feed.counts.failed_recoveries += 1
        return resume.position

    def forget(self) -> None:
        """Forget the page that was read: the history has been removed."""
        self._after, self._frames = None, ()

    async def _read(self, after: Position) -> tuple[Sequence[Frame], Position | None] | None:
        """Read the publications after ``after``, about as many as are written at a time.

        Returns them with the position of the channel at the time of the read, or without if it was read
        before this call; or ``None`` if the feed's recent buffer has them.
        """
        async with self._lock:
            if self.feed.remembers(after):
                # They were read for another subscriber meanwhile. If they are out of the buffer by the time
                # at which this one has room, they are read again.
                return None
            shared = self._shared(after)
            return await self._read_engine(after) if shared is None else (shared, None)

    async def _read_engine(self, after: Position) -> tuple[Sequence[Frame], Position]:
        while True:
            page = await self._read_page(after, self._limit)
            self.feed.remember(page.publications, page.position)
            if not self.feed.is_repairing:
                break
            # The page contradicts the publications that subscribers have received: it is read again after
            # the repair.
        frames = [Frame(publication) for publication in page.publications]
        if frames:
            average = sum(frame.cost for frame in frames) // len(frames)
            self._limit = max(1, min(MAX_READ, PIECE // average))
        # No more than one piece: clients that take nothing would keep it in memory.
        self._after, self._frames, self._read_at = after, _piece(frames), self._clock.time()
        return self._frames, page.position

    def _shared(self, after: Position) -> Sequence[Frame] | None:
        """Return the publications after ``after`` from the last page, if that is fresh."""
        first = self._frames[0].publication if self._frames else None
        if first is None or self._after is None or self._clock.time() - self._read_at > FRESH:
            return None
        if after != self._after and (after.epoch != first.epoch or after.offset < self._after.offset):
            return None
        # There are no publications between the position that was read from and the first one of the page.
        return self._frames[max(0, after.offset + 1 - first.offset) :] or None


def _piece(frames: Sequence[Frame]) -> Sequence[Frame]:
    cost = 0
    for count, frame in enumerate(frames):
        cost += frame.cost
        if cost > PIECE and count > 0:
            return frames[:count]
    return frames
