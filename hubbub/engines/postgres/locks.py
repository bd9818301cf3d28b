"""Locks of channels: how long a request waits for one, without delaying requests to other channels.

A transaction that publishes to a channel locks the channel's row until it ends, and other publishers to that
channel wait for it. While they wait on the server, each of them occupies a connection, so an application that
keeps a transaction open would occupy the whole pool. Therefore:

* Publishing never uses the whole pool: some connections are left for reads and presence.
* The first attempt to lock a channel waits only for a moment. If that is not enough, the channel is
  *blocked*, and further attempts take turns on a part of the connections for publishing.
* The more channels are blocked, the shorter each turn, so that a channel whose transaction has ended is
  published to within about a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from types import TracebackType
from typing import Self

from hubbub.exceptions import EngineUnavailable

#: Seconds that a first attempt waits for a lock at most, that one round of further attempts takes at most,
#: and that any attempt waits at least.
FIRST, ROUND, LEAST = 0.1, 1.0, 0.01


class Blocked(EngineUnavailable):
    """An open transaction has locked the channel. Nothing has been done."""


class Locks:
    """Decides when a request may wait for a lock, and how long.

    :param pool_size: the number of connections of the pool.
    """

    def __init__(self, pool_size: int) -> None:
        publishing = max(1, pool_size - (pool_size + 1) // 3)
        self._share = max(1, publishing // 2)
        # With a single connection, all other channels wait meanwhile.
        self._round = ROUND if publishing > 1 else FIRST
        self._publishing = asyncio.Semaphore(publishing)
        self._waiting = asyncio.Semaphore(self._share)
        self._blocked = 0

    def attempts(self) -> Attempts:
        """Return the attempts of one caller at one channel."""
        return Attempts(self)

    def _patience(self, is_blocked: bool) -> float:
        if is_blocked:
            return max(LEAST, self._round * self._share / max(self._share, self._blocked))
        return max(LEAST, FIRST / (1 + self._blocked))


class Attempts:
    """The attempts of one caller to do something that locks a channel.

    ::

        with locks.attempts() as attempts:
            while …:
                with suppress(Blocked):
                    async with attempts.turn() as patience:
                        …
    """

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self._is_blocked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._set_blocked(False)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Make one attempt, as soon as there is a connection for it.

        The block is given the seconds that it may wait for the lock, and raises :class:`Blocked` when they
        have passed.
        """
        locks = self._locks
        async with locks._waiting if self._is_blocked else nullcontext(), locks._publishing:
            try:
                yield locks._patience(self._is_blocked)
            except Blocked:
                self._set_blocked(True)
                raise
            self._set_blocked(False)

    def _set_blocked(self, is_blocked: bool) -> None:
        self._locks._blocked += is_blocked - self._is_blocked
        self._is_blocked = is_blocked
