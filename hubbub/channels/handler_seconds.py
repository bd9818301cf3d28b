"""Handler seconds: for how long the handlers of declared channels run, as a histogram."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Literal, TypeAlias

HandlerKind: TypeAlias = Literal["subscribe", "snapshot", "publish", "rpc"]

#: Seconds: the upper bounds of the buckets. One more bucket holds the durations beyond the last.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Durations:
    """The durations of one kind of handler of one declaration."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        #: The number of durations in each bucket: beyond the bound before it, up to its own.
        self.buckets = [0] * (len(BOUNDS) + 1)
        #: The sum of all durations.
        self.seconds = 0.0


class HandlerSeconds:
    """The durations of the handlers of a hub, by declaration and kind.

    ::

        if not handler_seconds.is_on:
            return await handle()
        begin = perf_counter()
        try:
            return await handle()
        finally:
            handler_seconds.observe("room:{room_id}", "publish", perf_counter() - begin)

    It is off until metrics are exported, so that an application without them pays for one attribute only.
    Labels are the declared patterns and never the names of channels, of which clients could make any number.
    """

    __slots__ = ("_durations", "_recorders", "is_on")

    def __init__(self) -> None:
        #: Whether the hub observes durations.
        self.is_on = False
        self._durations: dict[tuple[str, HandlerKind], Durations] = {}
        self._recorders: tuple[Callable[[str, HandlerKind, float], None], ...] = ()

    def observe(self, pattern: str, kind: HandlerKind, seconds: float) -> None:
        """Add the duration of one call of a handler, with its dependencies.

        :param pattern: of the declared channel; for ``"rpc"``, the name of the declared method.
        :param kind: the kind of handler.
        """
        durations = self._durations.get((pattern, kind))
        if durations is None:
            durations = self._durations[pattern, kind] = Durations()
        durations.buckets[bisect_left(BOUNDS, seconds)] += 1
        durations.seconds += seconds
        for record in self._recorders:
            record(pattern, kind, seconds)

    def items(self) -> list[tuple[tuple[str, HandlerKind], Durations]]:
        """Return the durations of each pattern and kind."""
        return list(self._durations.items())

    def add_recorder(self, record: Callable[[str, HandlerKind, float], None]) -> None:
        """Hand each further duration to ``record``, too, and observe from now on."""
        self._recorders = (*self._recorders, record)
        self.is_on = True
