"""The end of a connection: its code and reason, for the task that waits for the client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Ending:
    """Whether a connection has ended, and how. It ends once."""

    __slots__ = ("_task", "client_left", "ended")

    def __init__(self) -> None:
        #: The code and reason with which the connection ended; ``None`` while it is open.
        self.ended: tuple[int, str] | None = None
        #: Whether the client has ended the connection, so that nothing can be sent to it any more.
        self.client_left = False
        # The task that waits for the client.
        self._task: asyncio.Task[Any] | None = None

    def end(self, code: int, reason: str) -> None:
        """Wait for the client no more; a task that waits is woken. Only the first call counts."""
        if self.ended is None:
            self.ended = (code, reason)
            if self._task is not None:
                self._task.cancel()

    async def _unless_ended(self, waiting: Awaitable[T]) -> T | None:
        """Wait for the client, in one task at a time; ``None`` if the connection ends meanwhile."""
        task = self._task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        try:
            return await waiting
        except asyncio.CancelledError:
            # end() stops the wait as asyncio.timeout() does: by a cancellation that is taken back here. So it
            # costs nothing where it does not happen.
            if self.ended is not None and task.uncancel() <= cancelling:
                return None
            raise
        finally:
            self._task = None
