"""A ring: the recent buffer of a feed, from which clients that reconnect are served without a read.

It keeps no more than the channel itself keeps, and nothing for longer: a publication that was removed from
the history is removed from the buffer. The age of a publication that was handed over live is the time since
it arrived. The age of one that was read from the history is not known here, since the server's clock may
differ from ours. So it is kept for a few seconds, in which many clients may reconnect at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from math import inf
from typing import NamedTuple

from hubbub.core.frames import Frame, Weight
from hubbub.core.history import History
from hubbub.core.publication import Publication

#: Publications that are kept at the most, and their bytes, encodings included. When a server restarts, all
#: its clients reconnect at once, and miss the same publications.
RING_SIZE = 1000
RING_BYTES = 1_048_576

#: Seconds for which publications that were read from the history are kept.
STORM = 10.0


class _Entry(NamedTuple):
    frame: Frame
    #: When it expires, by the ring's clock. Older entries never expire later than newer ones.
    until: float


class Ring:
    """The newest publications of a channel as frames, one for each offset up to the position of the feed.

    :param history: how many publications the channel is declared to keep, if that is known.
    :param clock: returns seconds that never go back.
    """

    __slots__ = ("_clock", "_entries", "_size", "_ttl", "_weight")

    def __init__(self, history: History | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = RING_SIZE if history is None else min(history.size, RING_SIZE)
        self._ttl = inf if history is None else history.ttl
        self._clock = clock
        self._entries: deque[_Entry] = deque()
        # Shared with the frames, which grow when they are encoded in a codec of their subscribers.
        self._weight = Weight()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def cost(self) -> int:
        """Bytes that its frames count for, with all their encodings."""
        return self._weight.cost

    def append(self, frame: Frame, *, is_live: bool = True) -> None:
        """Take the frame after the newest one.

        :param is_live: whether it has just arrived; otherwise it was read from the history just now.
        """
        now = self._clock()
        until = now + (self._ttl if is_live else min(self._ttl, STORM))
        if self._entries and not is_live:
            # It was accepted after the frame before it, and does not expire before that.
            until = max(until, self._entries[-1].until)
        self._entries.append(_Entry(frame, until))
        frame.weigh(self._weight)
        self._trim(now)

    def prepend(self, publications: Iterable[Publication]) -> None:
        """Take publications that were read from the history just now, as far as there is room.

        :param publications: the newest first, beginning with the one before the oldest here.
        """
        until = self._clock() + min(self._ttl, STORM)
        newer = self._entries[0] if self._entries else None
        for publication in publications:
            frame = Frame(publication)
            if len(self._entries) >= self._size or self.cost + frame.cost > RING_BYTES:
                break
            if newer is not None:
                # It expires as much earlier than the next one as it was accepted earlier.
                until = min(until, newer.until - max(0.0, newer.frame.publication.time - publication.time))
            newer = _Entry(frame, until)
            self._entries.appendleft(newer)
            frame.weigh(self._weight)

    def newest(self, count: int) -> list[Frame]:
        """Return the newest ``count`` frames, or as many as there are."""
        self.trim()
        return [entry.frame for entry in islice(self._entries, max(0, len(self) - count), None)]

    def trim(self) -> None:
        """Drop frames that have expired, or have no room since frames were encoded."""
        self._trim(self._clock())

    # Internal

    def _trim(self, now: float) -> None:
        entries, weight = self._entries, self._weight
        while entries and (entries[0].until <= now or len(entries) > self._size or weight.cost > RING_BYTES):
            entries.popleft().frame.weigh(None)
