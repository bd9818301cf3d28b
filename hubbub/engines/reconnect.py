"""Reconnecting: the one outage loop of all engines that have a server or a file.

===================  ======================================================================================
:class:`Backoff`     the pauses between attempts: short at first, then longer, and random
:class:`Outage`      whether the server is lost, why and since when. It writes the log and notifies the node,
                     once for each outage. It does no I/O, so that a thread can use it (SQLite's worker)
:class:`Reconnector` the loop as a task: connect, serve until the connections are lost, report the outage,
                     back off, connect again, report the reconnection (Redis, PostgreSQL)
===================  ======================================================================================
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import random

from hubbub.engines.base import ANSWER_TIMEOUT, Sink, notify
from hubbub.exceptions import EngineUnavailable

logger = logging.getLogger(__name__)

#: Seconds: the limits of the first pause and of the longest. In between, the limit doubles with each attempt.
RETRY_MIN, RETRY_MAX = 0.1, 5.0


class Backoff:
    """The pauses between attempts: each a random time up to a limit, which doubles.

    All of a pause is random, so that the processes that lost one server do not all connect to it at the
    same moment.

    :param first: the limit of the first pause, in seconds. Default: ``RETRY_MIN``.
    :param longest: the limit that is not exceeded, in seconds. Default: ``RETRY_MAX``.
    """

    def __init__(self, first: float | None = None, longest: float | None = None) -> None:
        self._first = RETRY_MIN if first is None else first
        self.longest = RETRY_MAX if longest is None else longest
        self._limit = self._first

    def pause(self) -> float:
        """Return the seconds until the next attempt, and double the limit for the one after it."""
        limit, self._limit = self._limit, min(self._limit * 2, self.longest)
        return random() * limit

    async def wait(self, hope: asyncio.Event | None = None) -> None:
        """Wait for the next pause.

        :param hope: ends the pause early when it is set.
        """
        seconds = self.pause()
        if hope is None:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await hope.wait()

    def reset(self) -> None:
        """Begin with the first limit again, after an attempt that has succeeded."""
        self._limit = self._first


class Outage:
    """Whether an engine's server is lost, why, and since when.

    Every outage is logged and reported once when it begins and once when it ends, however many attempts to
    reconnect fail in between. Sans I/O: the methods are plain calls, all from one thread.

    :param server: the server's name in messages, such as ``"Redis at cache:6379"``. Without a password.
    :param on_disconnect: called with a sentence for people when an outage begins.
    :param on_reconnect: called when an outage ends.
    :param backoff: the pauses between attempts to reconnect.
    :param clock: seconds of a clock that is never set back.
    """

    def __init__(
        self,
        server: str,
        on_disconnect: Callable[[str], None],
        on_reconnect: Callable[[], None],
        *,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._on_disconnect = on_disconnect
        self._on_reconnect = on_reconnect
        self._backoff = backoff or Backoff()
        self._clock = clock
        # When the server was lost, and when it was connected to.
        self._lost_at: float | None = None
        self._connected_at = clock()
        #: Why the server cannot be used, as a sentence for the callers that wait for it; empty while it can.
        self.error = ""

    @property
    def is_under_way(self) -> bool:
        """Whether the server is lost and not yet connected to again."""
        return self._lost_at is not None

    def connected(self) -> None:
        """Note that the server can be used, for the first time or again. Ends the outage, if there is one."""
        lost_at, self._lost_at = self._lost_at, None
        self._connected_at = self._clock()
        self.error = ""
        if lost_at is not None:
            logger.info("Reconnected to %s after %.1f s.", self._server, self._connected_at - lost_at)
            self._on_reconnect()

    def lost(self, reason: str | Exception) -> None:
        """Note that the server cannot be used any more. Begins an outage, unless there is one already.

        :param reason: a phrase for people. An exception was not expected, and is logged with its traceback.
        """
        if self.is_under_way:
            return
        self._lost_at = self._clock()
        if self._lost_at - self._connected_at > self._backoff.longest:
            # Only then: a server that is lost again and again right after it was connected to gets pauses
            # that grow.
            self._backoff.reset()
        lost = f"Lost {self._server} ({_phrase(reason)})"
        self.error = f"{lost}."
        message = f"{lost}; reconnecting."
        if isinstance(reason, Exception):
            logger.error("%s", message, exc_info=reason)
        else:
            logger.warning("%s", message)
        self._on_disconnect(message)

    def failed(self, exc: Exception) -> None:
        """Note that an attempt to reconnect has failed.

        :param exc: an :class:`EngineUnavailable`, whose message is a sentence for people. Anything else was
            not expected, and is logged with its traceback.
        """
        if isinstance(exc, EngineUnavailable):
            self.error = str(exc)
            logger.info("%s; retrying.", self.error.rstrip("."))
        else:
            self.error = f"Could not reconnect to {self._server} ({_phrase(exc)})."
            logger.error("Could not reconnect to %s; retrying.", self._server, exc_info=exc)

    def pause(self) -> float:
        """Return the seconds until the next attempt to reconnect."""
        return self._backoff.pause()


class Reconnector:
    """Keeps an engine connected: the outage loop as a task of the event loop.

    A coroutine function that fails closes the connections itself, and ``connect`` also when it is cancelled.
    Connections that are open at :meth:`stop` are left to its caller.

    :param server: see :class:`Outage`.
    :param connect: makes all connections and subscribes again. Raises :class:`EngineUnavailable` where that
        is not possible now. Any other exception is logged with its traceback and otherwise treated alike:
        the attempts never end.
    :param serve: uses the connections until they are lost, and returns the reason, a phrase for people. An
        exception is logged with its traceback, and otherwise means the same.
    :param restore: awaited after a reconnection, before the node is notified; callers that wait for
        ``is_connected`` continue meanwhile. Raises as ``connect`` does.
    :param clock: see :class:`Outage`.
    :param sleep: waits for so many seconds.
    """

    def __init__(
        self,
        server: str,
        connect: Callable[[], Awaitable[None]],
        serve: Callable[[], Awaitable[str]],
        restore: Callable[[], Awaitable[None]] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._server = server
        self._connect = connect
        self._serve = serve
        self._restore = restore
        self._clock = clock
        self._sleep = sleep
        self._sink: Sink | None = None
        self._task: asyncio.Task[None] | None = None
        self._prepare()

    # Lifecycle

    async def start(self, sink: Sink) -> None:
        """Connect, and reconnect from now on whenever the connections are lost.

        :param sink: is notified of outages.
        :raises EngineUnavailable: there is no connection; nothing has been started.
        """
        self._prepare()
        await self._connect()
        self._sink = sink
        self._outage.connected()
        self.is_connected.set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End the loop, and notify the sink of nothing more.

        Waits until the loop has ended, but not for a server that does not answer.
        """
        self._sink = None
        self.is_connected.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=ANSWER_TIMEOUT)

    @property
    def error(self) -> str:
        """Why there is no connection, as a sentence for callers that wait; empty while there is one."""
        return self._outage.error

    # Internal

    def _prepare(self) -> None:
        # At every start, because an event belongs to the event loop that it is first used on.
        #: Set while there are connections. Callers that wait for it continue before the node is notified.
        self.is_connected = asyncio.Event()
        self._outage = Outage(self._server, self._disconnected, self._reconnected, clock=self._clock)

    async def _run(self) -> None:
        while True:
            self._outage.lost(await self._served())
            while not await self._has_reconnected():
                pass
            self._outage.connected()

    async def _served(self) -> str | Exception:
        """Serve, and return the reason why the connections are lost."""
        try:
            return await self._serve()
        except Exception as exc:
            return exc
        finally:
            self.is_connected.clear()

    async def _has_reconnected(self) -> bool:
        """Wait for a pause, connect, and return whether that was successful."""
        await self._sleep(self._outage.pause())
        try:
            await self._connect()
            self.is_connected.set()
            if self._restore is not None:
                await self._restore()
        except Exception as exc:
            # No exception may end the loop: the engine would never receive anything again.
            self.is_connected.clear()
            self._outage.failed(exc)
            return False
        return True

    def _disconnected(self, reason: str) -> None:
        if self._sink is not None:
            notify(self._sink.on_disconnect, reason)

    def _reconnected(self) -> None:
        if self._sink is not None:
            notify(self._sink.on_reconnect)


def _phrase(reason: str | Exception) -> str:
    """Return ``reason`` as it is written between parentheses."""
    if isinstance(reason, Exception):
        text = str(reason)
        reason = f"{type(reason).__name__}: {text}" if text else type(reason).__name__
    return reason.rstrip(".")
