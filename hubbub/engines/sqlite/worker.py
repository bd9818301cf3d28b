"""The worker: the thread that has the file open. No other thread uses it, least of all the event loop.

The thread works in cycles. In each it makes the jobs that have been submitted, all writes in one transaction
(so that transactions grow with the load), reads new publications of all processes, and hands the results of
both over to the event loop in one callback. As one connection both writes and reads, a process that cannot
receive publications does not publish either.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeAlias

from hubbub.core.history import History
from hubbub.core.publication import Publication
from hubbub.engines.base import Sink, Top, hand_over, notify
from hubbub.engines.reconnect import Backoff, Outage
from hubbub.engines.sqlite.reader import Reader, Subscription
from hubbub.engines.sqlite.schema import Unusable
from hubbub.engines.sqlite.store import Store, is_busy, is_full
from hubbub.exceptions import EngineUnavailable, HubbubError, InvalidData

logger = logging.getLogger(__name__)

#: Seconds between two reads of the file: while publications come, and after a while without any. A
#: publication of another process is delayed by that much at most, on average by half of it.
POLL_MIN, POLL_MAX = 0.002, 0.025

#: The limit, in seconds, of the pauses between attempts to open a file that cannot be used.
RETRY_MAX = 0.25

#: Jobs of one transaction, for whose end other processes wait.
MAX_JOBS = 200

#: Seconds between two rounds of pruning, and of forgetting streams.
PRUNE_EVERY, FORGET_EVERY = 1.0, 60.0

#: The work of a job: called in the thread with the store and the present time.
Work: TypeAlias = Callable[[Store, float], Any]


class Job(NamedTuple):
    """Work for the thread, and the future of its result."""

    work: Work
    writes: bool
    future: asyncio.Future[Any]


#: The end of a job: its future, and its result or error.
Outcome: TypeAlias = tuple[asyncio.Future[Any], Any, BaseException | None]


class Worker(Thread):
    """The thread of one engine. Made and used on the event loop.

    ``opened`` is set there when the file has been opened, or cannot be; ``ended`` when the thread has nothing
    left to do.

    :param path: the path of the file.
    :param sink: receives publications and outages on the event loop.
    :param clock: the machine's clock, in seconds since 1970.
    """

    def __init__(self, path: str, namespace: str, sink: Sink, clock: Callable[[], float] = time.time) -> None:
        super().__init__(name="hubbub-sqlite", daemon=True)
        self._path = path
        self._namespace = namespace
        self._sink = sink
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        # From the event loop to the thread. None only wakes the thread.
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._stopping = False
        self._reader = Reader(path, namespace)
        # From the thread to the event loop: whether a callback with publications has not run yet. Until it
        # has, further publications stay in the file, and not in memory.
        self._handing_over = False
        # Used by the thread alone
        self._store: Store | None = None
        self._was_open = False
        # The reason to open the file again.
        self._suspicion: Exception | None = None
        self._failed = False
        self._waiting: list[Job] = []
        self._outcomes: list[Outcome] = []
        # Calls of the sink, besides publications.
        self._events: list[Callable[[], None]] = []
        self._outage = Outage(
            f"SQLite at {path!r}",
            self._disconnected,
            self._reconnected,
            backoff=Backoff(RETRY_MAX, RETRY_MAX),
        )
        # The times of the next pruning and forgetting.
        self._prune_at = self._forget_at = 0.0

    # On the event loop

    def submit(self, work: Work, writes: bool = True) -> asyncio.Future[Any]:
        """Have ``work`` done in the thread, unless the future is cancelled before."""
        future = self._loop.create_future()
        self._jobs.put(Job(work, writes, future))
        return future

    async def subscribe(self, channel: str, history: History | None) -> Top:
        """Hand over the publications to ``channel`` from now on."""
        subscription = self._reader.subscriptions.setdefault(channel, Subscription())
        is_new = subscription.last_id is None

        def work(store: Store, now: float) -> Top:
            top = store.subscribe(channel, history, now)
            subscription.history = history
            if is_new:
                # No other process writes until this is committed: later publications have greater ids.
                subscription.last_id = store.last_id()
            return top

        try:
            top: Top = await self.submit(work)
        except BaseException:
            # An earlier subscription stays: only the history has not been declared again.
            if is_new and self._reader.subscriptions.get(channel) is subscription:
                del self._reader.subscriptions[channel]
            raise
        return top

    def unsubscribe(self, channel: str) -> None:
        self._reader.subscriptions.pop(channel, None)

    def stop(self) -> None:
        """End the thread. It hands over nothing more; jobs that it can do at once are still done."""
        self._stopping = True
        self._jobs.put(None)

    def _hand_over(
        self, outcomes: list[Outcome], events: list[Callable[[], None]], publications: list[Publication]
    ) -> None:
        try:
            if not self._stopping:
                for event in events:
                    event()
                for publication in publications:
                    hand_over(self._sink, publication)
        finally:
            for future, result, error in outcomes:
                if future.done():
                    continue
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
            if publications:
                self._handing_over = False
                self._jobs.put(None)

    # In the thread: cycles

    def run(self) -> None:
        delay = 0.0
        try:
            while not self._failed:
                stopping = self._stopping
                self._take_jobs(0.0 if stopping else delay)
                delay = self._cycle(delay)
                if stopping:
                    break
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            logger.debug("The event loop was closed while %r was in use.", self._path)
        finally:
            self._close()
            while not self._jobs.empty():
                self._take_jobs(0.0)
            stopped = EngineUnavailable(f"The SQLite engine on {self._path!r} was stopped.")
            self._outcomes += [(job.future, None, stopped) for job in self._waiting]
            self._outcomes.append((self.ended, None, None))
            with suppress(RuntimeError):
                self._flush()

    def _take_jobs(self, delay: float) -> None:
        """Wait at most ``delay`` seconds for a job, and take all that have been submitted."""
        with suppress(Empty):
            job = self._jobs.get(timeout=delay) if delay else self._jobs.get_nowait()
            while True:
                if job is not None:
                    self._waiting.append(job)
                if len(self._waiting) >= MAX_JOBS:
                    break
                job = self._jobs.get_nowait()

    def _cycle(self, delay: float) -> float:
        """Do one cycle. Return the seconds to wait before the next one."""
        self._waiting = [job for job in self._waiting if not job.future.done()]
        found_any = False
        try:
            store = self._opened()
            self._do_jobs(store)
            found_any = self._read(store)
            self._prune(store)
        except Exception as exc:
            if self._loop.is_closed():
                raise
            if not is_busy(exc):
                self._lose(exc)
                return self._outage.pause()
            if self._store is None and self._was_open:
                # It was closed to be opened again, and now another process is writing. Jobs wait.
                self._outage.lost(str(exc))
        finally:
            self._flush()
        if found_any or self._waiting:
            return POLL_MIN
        return min(max(delay, POLL_MIN) * 1.25, POLL_MAX)

    def _flush(self, publications: list[Publication] | None = None) -> None:
        """Hand over all outcomes and events, and ``publications``, to the event loop in one callback."""
        outcomes, self._outcomes = self._outcomes, []
        events, self._events = self._events, []
        if outcomes or events or publications:
            self._handing_over |= bool(publications)
            self._loop.call_soon_threadsafe(self._hand_over, outcomes, events, publications or [])

    # In the thread: the file, and its outages

    def _opened(self) -> Store:
        """Return the store; opened again where that is necessary."""
        if self._store is not None and (self._suspicion or self._store.is_replaced()):
            reason = self._suspicion or "it was removed or replaced"
            logger.warning("Opening %r again (%s).", self._path, reason)
            self._close()
        if self._store is None:
            store = Store(self._path, self._namespace, self._clock)
            try:
                self._reader.begin(store)
            except BaseException:
                store.close()
                raise
            self._store = store
            if self._was_open and not self._outage.is_under_way:
                self._reconnected()
            self._was_open = True
            self._outage.connected()
            self._outcomes.append((self.opened, None, None))
        return self._store

    def _lose(self, exc: Exception) -> None:
        """Close the store, and fail all jobs that wait for it."""
        error = self._explained(exc)
        self._close()
        if self._was_open:
            # Only an error that was not expected is logged with its traceback.
            self._outage.lost(str(exc) if isinstance(error, EngineUnavailable) else exc)
        else:
            self._failed = True
            self._outcomes.append((self.opened, None, error))
        self._outcomes += [(job.future, None, error) for job in self._waiting]
        self._waiting = []

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
        self._suspicion = None

    def _disconnected(self, reason: str) -> None:
        self._events.append(partial(notify, self._sink.on_disconnect, reason))

    def _reconnected(self) -> None:
        self._events.append(partial(notify, self._sink.on_reconnect))

    # In the thread: jobs

    def _do_jobs(self, store: Store) -> None:
        jobs, self._waiting = self._waiting, []
        self._do_writes(store, [job for job in jobs if job.writes])
        for job in jobs:
            if not job.writes:
                self._do_read(store, job)

    def _do_writes(self, store: Store, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            with store.transaction():
                # Some may have been cancelled while we waited for the lock.
                jobs = [job for job in jobs if not job.future.done()]
                now = store.clock.tick()
                results = [job.work(store, now) for job in jobs]
        except Exception as exc:
            if is_busy(exc):
                # Another process is writing. Each job is tried again until its future is done.
                self._waiting += jobs
            elif len(jobs) > 1:
                # All of it was rolled back. One by one, only the job that caused the error fails.
                for job in jobs:
                    self._do_writes(store, [job])
            elif jobs:
                self._reject(jobs[0], exc)
        else:
            self._outcomes += [(job.future, result, None) for job, result in zip(jobs, results, strict=True)]
            self._reader.is_dirty = True

    def _do_read(self, store: Store, job: Job) -> None:
        try:
            result = job.work(store, store.clock.now())
        except Exception as exc:
            if is_busy(exc):
                self._waiting.append(job)
            else:
                self._reject(job, exc)
        else:
            self._outcomes.append((job.future, result, None))

    def _reject(self, job: Job, exc: Exception) -> None:
        self._outcomes.append((job.future, None, self._explained(exc)))
        # The file on a full disk can still be read, and data that does not fit says nothing about the file.
        # After any other error the file is opened again, which shows whether it can be used.
        if isinstance(exc, sqlite3.DatabaseError) and not (
            is_full(exc) or isinstance(exc, sqlite3.DataError)
        ):
            self._suspicion = exc

    def _explained(self, exc: Exception) -> Exception:
        """Return the error that callers get for ``exc``."""
        if isinstance(exc, HubbubError):
            return exc
        if isinstance(exc, sqlite3.DataError | OverflowError):
            return InvalidData(
                f"Expected values that SQLite can store, but got others ({exc}). Publish less data at once, "
                "or declare a smaller history."
            )
        if isinstance(exc, sqlite3.Error | OSError | Unusable):
            return EngineUnavailable(f"SQLite at {self._path!r} cannot be used: {exc}.")
        return exc

    # In the thread: publications and pruning

    def _read(self, store: Store) -> bool:
        """Hand over some new publications. Return whether there were any, of any channel."""
        if self._reader.is_up_to_date(store):
            return False
        if self._handing_over:
            return True
        reading = self._reader.read(store)
        if reading.was_behind:
            self._reconnected()
        self._flush(reading.publications)
        return reading.found_any

    def _prune(self, store: Store) -> None:
        now = time.monotonic()
        if now < self._prune_at:
            return
        self._prune_at = now + PRUNE_EVERY
        is_forgetting = now >= self._forget_at
        if store.pruner.is_due(store.clock.now()) or is_forgetting:
            # If the file is locked, or the disk is full, the next round does it.
            with suppress(sqlite3.OperationalError), store.transaction():
                present = store.clock.tick()
                if store.pruner.prune(present):
                    self._prune_at = now
                if is_forgetting:
                    store.pruner.forget_streams(present)
                    self._forget_at = now + FORGET_EVERY
