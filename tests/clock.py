"""A clock that stands still until a test advances it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

#: Turns of the event loop in which tasks without input and output do all there is to do.
TURNS = 50


class Timer:
    """A callback of :meth:`FakeClock.call_later`."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeClock:
    """Seconds, and callbacks that are due after some of them.

    ::

        clock = FakeClock()
        engine = MemoryEngine("memory://", clock=clock)
        clock.advance(30)

    It is called for the time, like ``time.monotonic``. Parts of a node take it in place of the event loop,
    which has the same ``time()`` and ``call_later()``.

    :param now: where it begins, in seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()

    def __call__(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Timer:
        timer = Timer(lambda: callback(*args))
        heapq.heappush(self._timers, (self._now + delay, next(self._numbers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Advance by ``seconds``, and call what is due by then, in order; each at its own time."""
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            # A delay below 0 is one of 0.
            self._now = max(self._now, due)
            if not timer.is_cancelled:
                timer.call()
        self._now = end

    async def pass_time(self, seconds: float, step: float) -> None:
        """Advance by ``seconds`` in steps of ``step``, and let tasks work after each."""
        for _ in range(round(seconds / step)):
            self.advance(step)
            for _ in range(TURNS):
                await asyncio.sleep(0)
