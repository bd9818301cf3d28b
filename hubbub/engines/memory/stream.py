"""The history of one channel in memory."""

from __future__ import annotations

import math
import time
from collections import deque
from itertools import islice

from hubbub.core.history import History
from hubbub.core.publication import Position, Publication
from hubbub.engines.base import Top


class Stream:
    """The publications of a channel with history, and its position.

    :param history: how many publications are kept, and for how many seconds.
    :param epoch: of its positions.
    """

    __slots__ = ("due", "epoch", "history", "offset", "publications", "used")

    def __init__(self, history: History, epoch: str) -> None:
        self.epoch = epoch
        self.offset = 0
        self.history = history
        #: Each publication with the time at which it was accepted, by the engine's clock.
        self.publications: deque[tuple[float, Publication]] = deque()
        #: When the stream was last used.
        self.used = 0.0
        #: The second in which the stream is examined, see :class:`~hubbub.engines.memory.streams.Agenda`.
        self.due = math.inf

    @property
    def position(self) -> Position:
        return Position(self.offset, self.epoch)

    @property
    def top(self) -> Top:
        newest = self.publications[-1][1] if self.publications else None
        return Top(self.position, newest.id if newest and newest.offset == self.offset else "")

    def append(self, publication: Publication, now: float) -> Publication:
        """Give ``publication`` the next offset, keep it, and return it with its position."""
        self.offset += 1
        accepted = publication.at(Position(self.offset, self.epoch), time.time())
        self.publications.append((now, accepted))
        self.used = now
        if len(self.publications) > self.history.size:
            self.trim(now)
        return accepted

    def read(self, since: Position | None, limit: int | None, reverse: bool) -> list[Publication]:
        """Read as :meth:`~hubbub.engines.Engine.history` does.

        Takes time in proportion to the publications returned, not to those kept.
        """
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
        """Drop publications beyond the history's size or older than its ttl."""
        kept, size, ttl = self.publications, self.history.size, self.history.ttl
        while kept and (len(kept) > size or kept[0][0] + ttl <= now):
            kept.popleft()
