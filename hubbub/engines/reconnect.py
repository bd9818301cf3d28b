"""Trying again: soon at first, then ever more rarely, and not all at the same moment."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import random

#: Seconds: the first limit and the last. In between, it doubles with every try.
RETRY_MIN, RETRY_MAX = 0.1, 5.0


class Backoff:
    """The pauses between tries at something that does not work at the moment."""

    def __init__(self) -> None:
        self._limit = RETRY_MIN

    async def wait(self, hope: asyncio.Event | None = None) -> None:
        """Wait a random time up to the limit, which doubles.

        :param hope: when it is set, there is no more reason to wait.
        """
        # All of it is random: when a server comes back, not everybody is to knock at once.
        limit, self._limit = self._limit, min(self._limit * 2, RETRY_MAX)
        if hope is None:
            await asyncio.sleep(random() * limit)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(random() * limit):
                await hope.wait()

    def reset(self) -> None:
        """It has worked for a while: begin anew."""
        self._limit = RETRY_MIN
