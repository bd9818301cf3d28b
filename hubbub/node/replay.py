"""Replay: reads what subscribers have missed of a channel, and hands it over as their clients take it.

A client that comes back may have missed many megabytes. Nothing is read or handed over before the client has
taken what came before, so that what waits for it stays below the bound of its outbox, however much it has
missed and however many clients come back at once.
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
from hubbub.core.subscriber import Subscriber
from hubbub.engines.reconnect import Backoff
from hubbub.exceptions import EngineUnavailable

#: Bytes that are handed over at a time, and about as much is read at a time. One publication may be larger.
PIECE = 65_536

#: Publications in the first read of a channel, when it is not known how large they are.
FIRST_READ = 16

#: Publications in one read at the most.
MAX_READ = 1000

#: Seconds for which what was read on behalf of one subscriber is handed over to others.
FRESH = 1.0


class Replay:
    """What subscribers have missed of one channel. Those that come back at the same time share its reads.

    :param feed: the channel's.
    :param read: reads what the channel has kept after a position, at most so many publications, at a moment
        when the feed is not being repaired.
    """

    def __init__(self, feed: Feed, read: Callable[[Position, int], Awaitable[HistoryPage]]) -> None:
        #: The channel's.
        self.feed = feed
        self._read_page = read
        self._loop = asyncio.get_running_loop()
        # One read at a time: the first is kept for the others, here and in the feed's memory.
        self._lock = asyncio.Lock()
        self._after: Position | None = None
        self._frames: Sequence[Frame] = ()
        self._read_at = 0.0
        self._limit = FIRST_READ

    async def join(
        self,
        member: Subscriber,
        form: Form,
        since: Position | None,
        history: int,
        is_wanted: Callable[[], bool],
    ) -> Position:
        """Let ``member`` into the channel after everything that it has missed; see
        :class:`~hubbub.core.resume.Joining`.

        :param is_wanted: whether it is still to be let in.
        :return: the position up to which it has been handed everything.
        :raises Unrecoverable: not everything since ``since`` is there, and the form has no way to say so.
        :raises EngineUnavailable: the engine cannot be reached, and nothing has been handed over.
        """
        joining = Resume(self.feed, member, form, since, history)
        backoff = Backoff()
        while (room := await member.ready()) and is_wanted():
            # From here to the end of the step, nothing is awaited.
            after = joining.step(min(room, PIECE) if member.recovers_in_pieces else room)
            if joining.is_complete:
                break
            if after is None:
                # A client that takes everything at once leaves the others their turn.
                await asyncio.sleep(0)
                continue
            try:
                if (found := await self._read(after)) is not None:
                    joining.take(*found)
                backoff.reset()
            except EngineUnavailable:
                if not joining.has_begun:
                    raise
                # As for a member, it goes on when the engine is back.
                await backoff.wait()
        return joining.position

    def forget(self) -> None:
        """The channel's history has been removed: hand over nothing of what was read before."""
        self._after, self._frames = None, ()

    async def _read(self, after: Position) -> tuple[Sequence[Frame], Position | None] | None:
        """What follows ``after``, as much as is handed over at a time, and where the channel stood when it
        was read, unless that was before this call. ``None`` if the feed's memory has it."""
        async with self._lock:
            if self.feed.remembers(after):
                # It was read for another subscriber meanwhile. By the time that this one has room, it may be
                # forgotten, and is read again then.
                return None
            shared = self._shared(after)
            return await self._read_anew(after) if shared is None else (shared, None)

    async def _read_anew(self, after: Position) -> tuple[Sequence[Frame], Position]:
        while True:
            page = await self._read_page(after, self._limit)
            self.feed.remember(page.publications, page.position)
            if not self.feed.is_repairing:
                break
            # What was read is at odds with what members have been handed.
        frames = [Frame(publication) for publication in page.publications]
        if frames:
            average = sum(frame.cost for frame in frames) // len(frames)
            self._limit = max(1, min(MAX_READ, PIECE // average))
        # Clients that take nothing are not to hold more than that.
        self._after, self._frames, self._read_at = after, _piece(frames), self._loop.time()
        return self._frames, page.position

    def _shared(self, after: Position) -> Sequence[Frame] | None:
        """What follows ``after`` in what was read last, if that was a moment ago."""
        first = self._frames[0].publication if self._frames else None
        if first is None or self._after is None or self._loop.time() - self._read_at > FRESH:
            return None
        if after != self._after and (after.epoch != first.epoch or after.offset < self._after.offset):
            return None
        # There is nothing between the position that was read from and the first.
        return self._frames[max(0, after.offset + 1 - first.offset) :] or None


def _piece(frames: Sequence[Frame]) -> Sequence[Frame]:
    cost = 0
    for count, frame in enumerate(frames):
        cost += frame.cost
        if cost > PIECE and count > 0:
            return frames[:count]
    return frames
