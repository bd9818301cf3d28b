"""A clock that stands still until a test advances it."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from hubbub.engines.memory.engine import MemoryEngine
from hubbub.hub import Hub
from hubbub.node.clock import Clocks
from hubbub.types import check_seconds

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
    """Seconds, and callbacks that are due after some of them; for tests of engines.

    ::

        clock = FakeClock()
        engine = MemoryEngine("memory://", clock=clock)
        clock.advance(30)

    It is called for the time, like ``time.monotonic``. Parts of a node take it in place of the event loop,
    which has the same ``time()`` and ``call_later()``. Tests of applications use :func:`freeze`.

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
        """Advance by ``seconds``, and call all callbacks due by then, in order, each at its own time.

        Tasks work afterwards, as after a sleep of the machine; see :meth:`pass_time`.
        """
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


class FrozenClock:
    """The clock of a hub that stands still; :func:`freeze` makes it."""

    def __init__(self) -> None:
        self._clock = FakeClock()
        self._begin = time.time()

    def time(self) -> float:
        """Return the present of the hub in seconds since 1970, as in ``exp`` of a token."""
        return self._begin + self._clock.time()

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass for the hub, second by second, and let all tasks work after each.

        :raises TypeError: ``seconds`` is not a number.
        :raises ValueError: ``seconds`` is not greater than 0, or not finite.
        """
        check_seconds("seconds", seconds)
        whole, rest = divmod(seconds, 1)
        await self._clock.pass_time(whole, 1)
        if rest:
            await self._clock.pass_time(rest, rest)


@contextmanager
def freeze(hub: Hub) -> Iterator[FrozenClock]:
    """Stop the clock of ``hub``, so that a test need not wait for the expiry of tokens, histories and leases.

    ::

        with freeze(hub) as clock:
            async with connect(app, "room:7", headers=token(expires_at=clock.time() + 60)) as client:
                await clock.advance(61)
                with pytest.raises(Closed) as closed:
                    await client.receive()
        assert closed.value.code == 3005

    The expiry of identities, of histories and of presence, and the repairs of the hub follow this clock.
    Rate limits, waits for clients, the check of a token's ``exp`` when it arrives, and the code of the
    application remain in real seconds.

    :param hub: a hub on ``memory://`` that is not running. It begins with nothing in its channels, and gets
        its own engine and clock back at the end of the block.
    :raises ValueError: the hub has another engine, which takes its time from a file or a server.
    :raises RuntimeError: the hub is running: enter this block before the app starts, and leave it after that.
    """
    engine = hub.engine
    if not isinstance(engine, MemoryEngine):
        raise ValueError(
            f"Expected a hub on memory://, but got one with {type(engine).__name__}, which takes its time "
            "from a file or a server. Give the hub another URL in tests."
        )
    _check_stopped(hub)
    clock = FrozenClock()
    clocks = hub._clocks
    hub.engine = MemoryEngine(engine.url, engine.namespace, clock=clock._clock)
    hub._clocks = Clocks(clock._clock, clock.time)
    try:
        yield clock
        _check_stopped(hub)
    finally:
        hub.engine, hub._clocks = engine, clocks


def _check_stopped(hub: Hub) -> None:
    if hub._lifecycle.node is not None:
        raise RuntimeError(
            "Expected a hub that is not running, but got one that is. Put the block of freeze(hub) around "
            "those in which the app runs."
        )
