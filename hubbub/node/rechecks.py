"""Rechecks: whether connections may still be where they are, asked again one after another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextvars import copy_context
from typing import Protocol

from hubbub.codes import CloseCode
from hubbub.node.clock import Clock, Timer

logger = logging.getLogger(__name__)

#: Connections that are rechecked at the same time. Each of them may take a connection of a database.
AT_ONCE = 16

#: Seconds until a recheck must have an answer.
TIMEOUT = 30.0


class Checked(Protocol):
    """A connection, as far as rechecks need it."""

    id: str

    async def recheck(self) -> None:
        """Check the permissions of the client again, and end the connection if it has lost them."""

    def end(self, code: int, reason: str) -> None:
        """Begin to close, without waiting."""


class Rechecks:
    """Rechecks connections in tasks, a few at the same time, each connection by one task at a time.

    A recheck that raises or takes too long leaves the permissions open. Then its connection ends with
    1011, so that the client connects and is checked again.

    :param clock: by which rechecks are timed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The context variables of the node. A command comes in those of any request or task.
        self._context = copy_context()
        # By connection id, in the order in which they are due.
        self._waiting: dict[str, Checked] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._has_stopped = False
        #: Commands that have been carried out so far; see :meth:`catch_up`.
        self.count = 0

    def carry_out(self, connections: Iterable[Checked]) -> None:
        """Carry out a command: recheck ``connections``.

        A connection that waits for a recheck gets only one. A connection that is being rechecked gets another
        one after that, because the present one may have read permissions that have changed meanwhile.
        """
        self.count += 1
        self._begin(connections)

    def catch_up(self, connection: Checked, count: int) -> None:
        """Recheck a new connection, if there has been a command since its permissions were checked.

        Permissions are checked before a client is accepted, and commands find only connections that the node
        has. A command of the time between would be lost.

        :param connection: the connection, which can be rechecked from now on.
        :param count: :attr:`count` from before its permissions were checked.
        """
        if count != self.count:
            self._begin([connection])

    def forget(self, connection: Checked) -> None:
        """Begin no recheck of ``connection``, which has ended.

        A recheck that is running is not cancelled: it may be the one that has ended the connection, and still
        has to close its dependencies.
        """
        self._waiting.pop(connection.id, None)

    async def stop(self) -> None:
        """Begin no more rechecks, and wait until those that are running have finished.

        If this is cancelled, they are cancelled, too.
        """
        self._has_stopped = True
        self._waiting.clear()
        tasks = list(self._running.values())
        try:
            if tasks:
                await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise

    # Internal

    def _begin(self, connections: Iterable[Checked]) -> None:
        if not self._has_stopped:
            self._waiting.update((connection.id, connection) for connection in connections)
            self._start_tasks()

    def _start_tasks(self) -> None:
        # Connections that are being rechecked are passed over; there are fewer than AT_ONCE of them.
        while len(self._running) < AT_ONCE:
            connection = next((each for key, each in self._waiting.items() if key not in self._running), None)
            if connection is None:
                break
            del self._waiting[connection.id]
            task = asyncio.get_running_loop().create_task(
                self._recheck(connection), context=self._context.copy()
            )
            self._running[connection.id] = task
            task.add_done_callback(lambda _, key=connection.id: self._finished(key))  # type: ignore[misc]

    def _finished(self, key: str) -> None:
        del self._running[key]
        self._start_tasks()

    async def _recheck(self, connection: Checked) -> None:
        task = asyncio.current_task()
        assert task is not None
        is_late = False

        def stop() -> None:
            nonlocal is_late
            is_late = True
            task.cancel()

        timer: Timer = self._clock.call_later(TIMEOUT, stop)
        try:
            await connection.recheck()
        except asyncio.CancelledError:
            if not is_late:
                raise
            logger.error(
                "The recheck of connection %s took more than %g s; closing the connection.",
                connection.id,
                TIMEOUT,
            )
            connection.end(CloseCode.INTERNAL_ERROR, "recheck failed")
        except Exception:
            logger.exception("The recheck of connection %s failed; closing the connection.", connection.id)
            connection.end(CloseCode.INTERNAL_ERROR, "recheck failed")
        finally:
            timer.cancel()
