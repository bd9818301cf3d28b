"""Rate: how often an event may happen, by a token bucket."""

from __future__ import annotations

import time
from collections.abc import Callable

# A token that has come except for a rounding error is there.
_ROUNDING = 1e-6


class TokenBucket:
    """Admits events at a rate, and a burst of them at once.

    The bucket has one token for each event of a burst. An event takes a token, and tokens come back at the
    rate. ::

        bucket = TokenBucket(rate=100, burst=100)
        if bucket.take():
            ...  # refuse the event

    :param rate: tokens that come back in a second.
    :param burst: tokens in a full bucket; the bucket is full at first.
    :param clock: returns seconds that never go back.
    """

    __slots__ = ("_burst", "_clock", "_rate", "_since", "_tokens")

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        # The moment in which there were so many.
        self._since = clock()

    def take(self) -> float:
        """Take a token for one event.

        :return: 0 if there was a token; otherwise the seconds until the next one comes, and none is taken.
        """
        tokens = self._fill()
        if tokens < 1 - _ROUNDING:
            return (1 - tokens) / self._rate
        self._tokens = max(tokens - 1, 0.0)
        return 0.0

    @property
    def is_full(self) -> bool:
        """Whether the bucket is as it was at first, so that it need not be kept."""
        return self._fill() >= self._burst

    def _fill(self) -> float:
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._since) * self._rate, float(self._burst))
        self._since = now
        return self._tokens
