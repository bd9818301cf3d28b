"""A clock that tests set by hand."""

from __future__ import annotations


class FakeClock:
    """Stands still until a test advances it.

    :param now: seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
