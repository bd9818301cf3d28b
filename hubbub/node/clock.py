"""The clock of a node: the event loop's, or a fake one in tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol


class Timer(Protocol):
    """A callback that is due later."""

    def cancel(self) -> None:
        """Do not call it."""


class Clock(Protocol):
    """Seconds, and callbacks after some of them. An event loop is a clock."""

    def time(self) -> float:
        """Return the time in seconds, from any beginning. It never goes back."""

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Call ``callback`` in ``delay`` seconds."""


class Clocks(NamedTuple):
    """The clocks of a node.

    :param clock: by which everything of the node is timed; ``None`` for the event loop's.
    :param wall_clock: seconds since 1970, which also pass while the machine sleeps. It may be set back.
    """

    clock: Clock | None = None
    wall_clock: Callable[[], float] = time.time


async def sleep(clock: Clock, seconds: float) -> None:
    """Wait for ``seconds`` of ``clock``."""
    await wait(clock, asyncio.Event(), seconds)


async def wait(clock: Clock, event: asyncio.Event, seconds: float) -> None:
    """Wait until ``event`` is set, for at most ``seconds`` of ``clock``. It may be set afterwards anyway."""
    if seconds <= 0:
        # At least one turn of the loop, so that a task that waits again and again does not keep it to itself.
        await asyncio.sleep(0)
        return
    timer = clock.call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
