"""A limit on how often an event is logged that a client, or an attacker, can cause at will."""

from __future__ import annotations

import time
from collections.abc import Callable


class Throttle:
    """Admits one event per interval, and counts the events in between.

    ::

        if (more := refusals.admit()) is not None:
            logger.warning("Refused a page.%s", more)

    :param seconds: the interval.
    :param clock: returns seconds that never go back.
    """

    __slots__ = ("_clock", "_held_back", "_next", "_seconds")

    def __init__(self, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._next = float("-inf")
        self._held_back = 0

    def admit(self) -> str | None:
        """Count one event, and admit it if none was admitted within the interval.

        :return: ``None`` if the event must not be logged; otherwise text for the end of the line: empty, or
            how many events were held back since the last line.
        """
        now = self._clock()
        if now < self._next:
            self._held_back += 1
            return None
        self._next = now + self._seconds
        held_back, self._held_back = self._held_back, 0
        return f" ({held_back} more since the last such line.)" if held_back else ""
