"""A ring: the recent buffer of a feed, from which clients that come back are served without a read.

It keeps no more than the channel itself keeps, and nothing for longer: what is gone from the history is gone
from here. A publication that was handed over live is as old as the time since it came. The age of one that
was read from the history is not known here, since the server's clock may differ from ours. So it stays only
as long as clients come back all at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from math import inf
from typing import NamedTuple

from hubbub.core.frames import Frame
from hubbub.core.history import History
from hubbub.core.publication import Publication

#: Publications kept at the most, and their bytes. When a server restarts, all its clients come at once, and
#: miss the same.
RING_SIZE = 1000
RING_BYTES = 1_048_576

#: Seconds for which publications that were read from the history are kept.
STORM = 10.0


class _Entry(NamedTuple):
    frame: Frame
    publication: Publication
    #: When it goes, by the ring's clock. Older entries never go later than newer ones.
    until: float


class Ring:
    """The newest publications of a channel as frames, one for each offset up to the position of the feed.

    :param history: what the channel is declared to keep, if that is known.
    :param clock: seconds, from any beginning.
    """

    __slots__ = ("_bytes", "_clock", "_entries", "_size", "_ttl")

    def __init__(self, history: History | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = RING_SIZE if history is None else min(history.size, RING_SIZE)
        self._ttl = inf if history is None else history.ttl
        self._clock = clock
        self._entries: deque[_Entry] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, publication: Publication, frame: Frame, *, is_live: bool = True) -> None:
        """Take the next one after the newest.

        :param is_live: whether it has just come; otherwise it was read from the history just now.
        """
        now = self._clock()
        until = now + (self._ttl if is_live else min(self._ttl, STORM))
        if self._entries and not is_live:
            # It was accepted after the one before it, and does not go before that.
            until = max(until, self._entries[-1].until)
        self._entries.append(_Entry(frame, publication, until))
        self._bytes += frame.cost
        self._trim(now)

    def prepend(self, publications: Iterable[Publication], frame_of: Callable[[Publication], Frame]) -> None:
        """Take what was read from the history just now, as far as there is room.

        :param publications: the newest first, beginning with the one before the oldest here.
        """
        until = self._clock() + min(self._ttl, STORM)
        newer = self._entries[0] if self._entries else None
        for publication in publications:
            frame = frame_of(publication)
            if len(self._entries) >= self._size or self._bytes + frame.cost > RING_BYTES:
                break
            if newer is not None:
                # As much earlier than the next one as it was accepted earlier.
                until = min(until, newer.until - max(0.0, newer.publication.time - publication.time))
            newer = _Entry(frame, publication, until)
            self._entries.appendleft(newer)
            self._bytes += frame.cost

    def newest(self, count: int) -> list[Frame]:
        """The newest ``count`` frames, or as many as there are."""
        self.trim()
        return [entry.frame for entry in islice(self._entries, max(0, len(self) - count), None)]

    def trim(self) -> None:
        """Drop what is too old."""
        self._trim(self._clock())

    # Inside

    def _trim(self, now: float) -> None:
        entries = self._entries
        while entries and (entries[0].until <= now or len(entries) > self._size or self._bytes > RING_BYTES):
            self._bytes -= entries.popleft().frame.cost
