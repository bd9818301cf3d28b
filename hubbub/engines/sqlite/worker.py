"""The thread that has the file open. Nothing else touches it, least of all the event loop.

It goes round and round: it takes what it is asked to do and writes all of that in one transaction (so under
load the transactions grow by themselves), looks for what has been published, by whichever process, and hands
both over to the event loop in one callback. As one connection both writes and reads, nothing is published by
a process that cannot hear.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeAlias

from hubbub.core.history import History
from hubbub.core.publication import Publication, unpack
from hubbub.engines.base import Sink, Top, hand_over
from hubbub.engines.sqlite.store import KEEP, Store, is_busy, is_full
from hubbub.exceptions import EngineUnavailable, HubbubError, InvalidData

logger = logging.getLogger("hubbub.engines.sqlite")

#: Seconds between two looks at the file: from when something is happening to when nothing has for a while.
#: What another process publishes is delayed by that much at the most, on average by half of it.
POLL_MIN, POLL_MAX = 0.002, 0.025

#: Seconds between two tries to open a file that is not to be had.
RETRY = 0.25

#: Jobs done in one transaction: other processes wait for its end.
MAX_JOBS = 200

#: Publications looked at at a time, and bytes handed over in one callback: one publication may have more.
MAX_NEWS = 500
MAX_NEWS_BYTES = 1_048_576

#: Seconds between two looks at what may be pruned; and at the streams that may be forgotten.
PRUNE_EVERY, FORGET_EVERY = 1.0, 60.0

#: What is done in the thread: called with the store and the present time.
Work: TypeAlias = Callable[[Store, float], Any]


class Job(NamedTuple):
    """Something to be done, and who waits for it."""

    work: Work
    writes: bool
    future: asyncio.Future[Any]


@dataclass(slots=True)
class Subscription:
    """What is to be handed over of a channel: publications with greater ids than ``last_id``, which is
    ``None`` until the file has been asked where it stands."""

    history: History | None = None
    last_id: int | None = None


#: How a job ended: its result or its error, and who waits for it.
Outcome: TypeAlias = tuple[asyncio.Future[Any], Any, BaseException | None]


class Worker(Thread):
    """Made and asked on the event loop; ``opened`` and ``ended`` tell there what became of it.

    :param path: the file.
    :param sink: is handed over to on the event loop.
    """

    def __init__(self, path: str, namespace: str, sink: Sink) -> None:
        super().__init__(name="hubbub-sqlite", daemon=True)
        self._path = path
        self._namespace = namespace
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        # From the loop to the thread. None just wakes it.
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._stopping = False
        # By channel. The loop adds and removes them, the thread fills them in.
        self._subscriptions: dict[str, Subscription] = {}
        # From the thread to the loop: whether a callback with publications has not run yet. Until it has, the
        # file holds what else comes, not the memory.
        self._handing_over = False
        # The thread's own
        self._store: Store | None = None
        self._was_open = False
        self._doubt: Exception | None = None
        self._failed = False
        self._is_lost = False
        self._waiting: list[Job] = []
        self._outcomes: list[Outcome] = []
        self._last_id = 0
        self._version = 0
        self._may_have_news = False
        self._looked = 0.0
        # What the sink is to be told, besides publications.
        self._events: list[Callable[[], None]] = []
        # The time of the next pruning and forgetting.
        self._prune_at = self._forget_at = 0.0

    # On the event loop

    def submit(self, work: Work, writes: bool = True) -> asyncio.Future[Any]:
        """Have ``work`` done. If the future is cancelled by then, it is left undone."""
        future = self._loop.create_future()
        self._jobs.put(Job(work, writes, future))
        return future

    def stop(self) -> None:
        """Hand over nothing more, do what has been submitted, if that is possible at once, and end."""
        self._stopping = True
        self._jobs.put(None)

    def _hand_over(
        self, outcomes: list[Outcome], events: list[Callable[[], None]], news: list[Publication]
    ) -> None:
        try:
            if not self._stopping:
                for event in events:
                    event()
                for publication in news:
                    hand_over(self._sink, publication)
        finally:
            for future, result, error in outcomes:
                if future.done():
                    continue
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
            if news:
                self._handing_over = False
                self._jobs.put(None)

    # Subscriptions

    async def subscribe(self, channel: str, history: History | None) -> Top:
        """Hand over what is published to ``channel`` from now on."""
        subscription = self._subscriptions.setdefault(channel, Subscription())
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
            # One that was there before stays: only the history has not been declared again.
            if is_new and self._subscriptions.get(channel) is subscription:
                del self._subscriptions[channel]
            raise
        return top

    def unsubscribe(self, channel: str) -> None:
        self._subscriptions.pop(channel, None)

    # In the thread

    def run(self) -> None:
        delay = 0.0
        try:
            while not self._failed:
                stopping = self._stopping
                self._take(0.0 if stopping else delay)
                delay = self._turn(delay)
                if stopping:
                    break
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            logger.debug("The event loop was closed while %r was in use.", self._path)
        finally:
            self._close()
            while not self._jobs.empty():
                self._take(0.0)
            stopped = EngineUnavailable(f"The SQLite engine on {self._path!r} was stopped.")
            self._outcomes += [(job.future, None, stopped) for job in self._waiting]
            self._outcomes.append((self.ended, None, None))
            with suppress(RuntimeError):
                self._flush()

    def _take(self, delay: float) -> None:
        """Wait ``delay`` seconds for jobs, and take those that have come."""
        with suppress(Empty):
            job = self._jobs.get(timeout=delay) if delay else self._jobs.get_nowait()
            while True:
                if job is not None:
                    self._waiting.append(job)
                if len(self._waiting) >= MAX_JOBS:
                    break
                job = self._jobs.get_nowait()

    def _turn(self, delay: float) -> float:
        """Once round. Returns the seconds to wait before the next."""
        self._waiting = [job for job in self._waiting if not job.future.done()]
        has_news = False
        try:
            store = self._opened()
            self._do(store)
            has_news = self._look(store)
            self._prune(store)
        except Exception as exc:
            if self._loop.is_closed():
                raise
            if not is_busy(exc):
                self._lose(exc)
                return RETRY
            if self._store is None and self._was_open:
                # Closed to be opened again, and now another process is at it. Jobs wait until it works.
                self._go_away(exc)
        finally:
            self._flush()
        if has_news or self._waiting:
            return POLL_MIN
        return min(max(delay, POLL_MIN) * 1.25, POLL_MAX)

    def _opened(self) -> Store:
        """The store; opened again if that is necessary."""
        if self._store is not None and (self._doubt or self._store.is_replaced()):
            logger.warning("To open %r again: %s.", self._path, self._doubt or "it was removed or replaced")
            self._close()
        if self._store is None:
            store = Store(self._path, self._namespace)
            try:
                self._catch_up(store)
            except BaseException:
                store.close()
                raise
            self._store = store
            if self._was_open:
                logger.warning("Opened %r again.", self._path)
                self._events.append(self._sink.on_reconnect)
            self._is_lost = False
            self._was_open = True
            self._outcomes.append((self.opened, None, None))
        return self._store

    def _catch_up(self, store: Store) -> None:
        """Begin to hear in a file that we have not seen yet, or not of late."""
        with store.transaction():
            now = store.tick()
            for channel, subscription in list(self._subscriptions.items()):
                if subscription.last_id is not None:
                    store.subscribe(channel, subscription.history, now)
                    # Ids begin anew in a new file.
                    subscription.last_id = 0
            self._last_id = store.last_id()
        self._looked = time.monotonic()
        self._may_have_news = True

    def _lose(self, exc: Exception) -> None:
        """Close the store, if it is open, and let everybody know who waits for it."""
        error = self._explained(exc)
        self._close()
        if not self._was_open:
            self._failed = True
            self._outcomes.append((self.opened, None, error))
        else:
            self._go_away(error)
        self._outcomes += [(job.future, None, error) for job in self._waiting]
        self._waiting = []

    def _go_away(self, exc: Exception) -> None:
        """Say, once, that the file is not to be had for now."""
        if not self._is_lost:
            self._is_lost = True
            reason = str(self._explained(exc))
            logger.error("%s Trying again until it works.", reason)
            self._events.append(partial(self._sink.on_disconnect, reason))

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
        self._doubt = None

    def _do(self, store: Store) -> None:
        jobs, self._waiting = self._waiting, []
        self._write(store, [job for job in jobs if job.writes])
        for job in jobs:
            if not job.writes:
                self._read(store, job)

    def _write(self, store: Store, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            with store.transaction():
                # Some may have given up while we waited for the lock.
                jobs = [job for job in jobs if not job.future.done()]
                now = store.tick()
                results = [job.work(store, now) for job in jobs]
        except Exception as exc:
            if is_busy(exc):
                # Another process writes. We try again until nobody waits for it any more.
                self._waiting += jobs
            elif len(jobs) > 1:
                # Nothing of it has happened. Each alone, it shows whose error it is.
                for job in jobs:
                    self._write(store, [job])
            elif jobs:
                self._reject(jobs[0], exc)
        else:
            self._outcomes += [(job.future, result, None) for job, result in zip(jobs, results, strict=True)]
            self._may_have_news = True

    def _read(self, store: Store, job: Job) -> None:
        try:
            result = job.work(store, store.now())
        except Exception as exc:
            if is_busy(exc):
                self._waiting.append(job)
            else:
                self._reject(job, exc)
        else:
            self._outcomes.append((job.future, result, None))

    def _reject(self, job: Job, exc: Exception) -> None:
        self._outcomes.append((job.future, None, self._explained(exc)))
        # A full disk is still readable, and data that does not fit says nothing about the file. After
        # anything else, it is better to open it again.
        if isinstance(exc, sqlite3.DatabaseError) and not (
            is_full(exc) or isinstance(exc, sqlite3.DataError)
        ):
            self._doubt = exc

    def _look(self, store: Store) -> bool:
        """Hand over what has been published, a piece at a time. Returns whether there was anything."""
        version = store.version()
        if version == self._version and not self._may_have_news:
            self._looked = time.monotonic()
            return False
        if self._handing_over:
            return True
        rows = store.published_after(self._last_id, MAX_NEWS)
        news, has_more = self._read_news(store, rows)
        now = time.monotonic()
        if now - self._looked > KEEP / 2:
            # So far behind, some may have been pruned unseen.
            self._events.append(self._sink.on_reconnect)
        self._looked = now
        self._version = version
        self._may_have_news = has_more or len(rows) == MAX_NEWS
        self._flush(news)
        return bool(rows)

    def _read_news(
        self, store: Store, rows: list[tuple[int, str, str, int]]
    ) -> tuple[list[Publication], bool]:
        """What of ``rows`` is to be handed over, as much as may be at once, and whether that was not all."""
        news: list[Publication] = []
        room = MAX_NEWS_BYTES
        for id_, namespace, channel, size in rows:
            subscription = self._subscriptions.get(channel)
            is_wanted = (
                namespace == self._namespace
                and subscription is not None
                and subscription.last_id is not None
                and id_ > subscription.last_id
            )
            if is_wanted:
                if news and size > room:
                    return news, True
                room -= size
                packed = store.packed(id_)
                try:
                    if packed is not None:
                        news.append(unpack(packed))
                except InvalidData as exc:
                    logger.error("In %r: %s", self._path, exc)
            self._last_id = id_
        return news, False

    def _prune(self, store: Store) -> None:
        now = time.monotonic()
        if now < self._prune_at:
            return
        self._prune_at = now + PRUNE_EVERY
        forget = now >= self._forget_at
        if store.has_to_prune(store.now()) or forget:
            # If the file is busy or full just now: the next time will do.
            with suppress(sqlite3.OperationalError), store.transaction():
                present = store.tick()
                if store.prune(present):
                    self._prune_at = now
                if forget:
                    store.forget_streams(present)
                    self._forget_at = now + FORGET_EVERY

    def _flush(self, news: list[Publication] | None = None) -> None:
        """Hand over what there is to the event loop, in one go."""
        outcomes, self._outcomes = self._outcomes, []
        events, self._events = self._events, []
        if outcomes or events or news:
            self._handing_over |= bool(news)
            self._loop.call_soon_threadsafe(self._hand_over, outcomes, events, news or [])

    def _explained(self, exc: Exception) -> Exception:
        """``exc`` as those who wait for a job are to get it."""
        if isinstance(exc, HubbubError):
            return exc
        if isinstance(exc, sqlite3.DataError | OverflowError):
            return InvalidData(f"Expected a publication that fits into SQLite, but got: {exc}.")
        if isinstance(exc, sqlite3.Error | OSError):
            return EngineUnavailable(f"Expected to read and write {self._path!r}, but got: {exc}.")
        return exc
