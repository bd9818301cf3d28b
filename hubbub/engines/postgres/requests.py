"""Requests to the database: each on a connection of the pool, and within a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import asyncpg

from hubbub.engines.base import ANSWER_TIMEOUT
from hubbub.engines.postgres.address import Address
from hubbub.engines.postgres.connections import ERRORS, Connections, describe, refusal
from hubbub.engines.postgres.locks import Blocked, Locks
from hubbub.engines.reconnect import Reconnector
from hubbub.exceptions import EngineUnavailable

T = TypeVar("T")

#: Ends the message of a request that waited for the lock of a channel in vain.
OPEN_TRANSACTION = "Is a transaction that published to the channel still open?"


class Requests:
    """Requests of one engine, and the tasks that make them.

    :param reconnector: says whether there are connections, and why not.
    :param check_started: raises :class:`~hubbub.exceptions.HubNotRunning` unless the engine has been started.
    :param on_error: called when a request failed in a way that may be an outage.
    """

    def __init__(
        self,
        address: Address,
        connections: Connections,
        reconnector: Reconnector,
        check_started: Callable[[], object],
        on_error: Callable[[], None],
    ) -> None:
        self._address = address
        self._connections = connections
        self._reconnector = reconnector
        self._check_started = check_started
        self._on_error = on_error
        self._tasks: set[asyncio.Task[Any]] = set()
        self.locks = Locks(address.pool_size)

    async def ask(self, request: Callable[[Any], Awaitable[T]]) -> T:
        """Return the answer to ``request``, which is called with a connection of asyncpg.

        :raises EngineUnavailable: there is no answer in time.
        :raises ValueError: PostgreSQL cannot store an argument.
        :raises Blocked: the time that the request sets for a lock was not enough.
        """
        self._check_started()
        task = self.spawn(self._run(request))
        try:
            done, _ = await asyncio.wait({task}, timeout=ANSWER_TIMEOUT)
        except asyncio.CancelledError:
            _give_up(task)
            raise
        if not done:
            _give_up(task)
            raise self.late("Are all connections of the pool busy?")
        if task.cancelled():
            raise self._address.unavailable("the engine has been stopped.")
        exc = task.exception()
        if exc is None:
            return task.result()  # type: ignore[no-any-return]
        if isinstance(exc, asyncpg.LockNotAvailableError):
            raise Blocked(str(self._address.unavailable(describe(exc)))) from exc
        if refused := refusal(exc):
            raise refused from exc
        if isinstance(exc, ERRORS):
            # If the tables were dropped, the listener's next poll fails too, and it creates them again.
            self._on_error()
            raise self._address.unavailable(describe(exc)) from exc
        raise exc

    async def ask_with_lock(self, request: Callable[[float], Awaitable[T]]) -> T:
        """Return the answer to ``request``, which locks a channel.

        :param request: called with the seconds that it may wait for the lock, and raises :class:`Blocked` if
            they are not enough. It is called again then.
        :raises EngineUnavailable: there is no answer in time.
        """
        self._check_started()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                with self.locks.attempts() as attempts:
                    while True:
                        with suppress(Blocked):
                            async with attempts.turn() as patience:
                                return await request(patience)
        except TimeoutError:
            raise self.late(OPEN_TRANSACTION) from None

    def late(self, hint: str) -> EngineUnavailable:
        """Return the error to raise when there was no answer in time.

        :param hint: a possible reason, if the database is connected.
        """
        if not self._reconnector.is_connected.is_set():
            # There is no error but that of an outage: the engine is being started or stopped.
            error = self._reconnector.error
            return EngineUnavailable(error) if error else self._address.unavailable("it is not connected.")
        return self._address.unavailable(f"no answer within {ANSWER_TIMEOUT:g} s. {hint}")

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Start a task, which :meth:`cancel` ends."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()

    async def wait_cancelled(self) -> None:
        """Wait until the tasks that were cancelled have ended, but not for a server that does not answer."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=ANSWER_TIMEOUT)

    async def _run(self, request: Callable[[Any], Awaitable[T]]) -> T:
        # A node that cannot receive publications does not publish either.
        await self._reconnector.is_connected.wait()
        return await self._connections.run(request)


def _give_up(task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` without waiting for its end, which may take long when the server does not answer."""
    task.cancel()
    # asyncpg fails to cancel a statement on such a server. No caller is left to get that error, and asyncio
    # is not to warn about it.
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
