"""The engine for ``sqlite:///file.db``: gives work to its thread, and waits for a bounded time."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import Position, Publication
from hubbub.engines.base import ANSWER_TIMEOUT, Engine, PresenceChange, Sink, Top, batched
from hubbub.engines.diagnostics import Diagnosis
from hubbub.engines.sqlite import diagnostics
from hubbub.engines.sqlite.worker import Work, Worker
from hubbub.exceptions import EngineUnavailable, InvalidURL

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Channels whose tops are read at once: publications wait meanwhile.
TOPS = 500


class SQLiteEngine(Engine):
    """Keeps everything in one file, for all processes of one machine; it outlives them.

    A process receives its own publications at once. It receives those of other processes when it reads the
    file: at most 2 ms later while publications come, and at most 25 ms later after a tenth of a second
    without any. The file is in WAL mode, which needs a local disk. Commits are not synced one by one: when
    the machine loses power (not: when a process is killed), the last ones may be lost.

    The file holds all publications of the last minute, those to channels without history too. If it is
    removed or replaced while it is in use, together with the ``-wal`` and ``-shm`` files beside it, all
    processes open the new file and continue with its contents.

    :param url: ``sqlite:///relative.db`` or ``sqlite:////absolute/path.db``. The directory must exist; the
        file is created if it does not exist. A relative path is taken from the present working directory.
    :param namespace: several namespaces may share a file.
    :param clock: the machine's clock, in seconds since 1970. Histories and leases expire by it.
    :raises InvalidURL: there is no path, or more than a path.
    """

    across_processes: ClassVar[bool] = True

    def __init__(self, url: str, namespace: str = "hubbub", clock: Callable[[], float] = time.time) -> None:
        super().__init__(url, namespace)
        #: The absolute path of the file.
        self.path = _path(url)
        self._clock = clock
        self._worker: Worker | None = None

    # Lifecycle

    async def start(self, sink: Sink) -> None:
        worker = Worker(self.path, self.namespace, sink, self._clock)
        worker.start()
        try:
            await self._in_time(worker.opened)
        except BaseException:
            await self._end(worker)
            raise
        self._sink, self._worker = sink, worker

    async def stop(self) -> None:
        worker, self._worker = self._worker, None
        self._sink = None
        if worker is not None:
            await self._end(worker)

    # Publishing

    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        position: Position = await self._do(
            lambda store, now: store.publish(publication, history, idempotency_key, now)
        )
        return position

    # Subscribing

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        return await self._in_time(self._started_worker().subscribe(channel, history))

    async def unsubscribe(self, channel: str) -> None:
        self._started_worker().unsubscribe(channel)

    # History

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        page: HistoryPage = await self._do(
            lambda store, now: store.history(channel, since, limit, reverse, now), writes=False
        )
        return page

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        tops: list[Top] = []
        for some in batched(channels, TOPS):
            tops += await self._do(lambda store, now, some=some: store.tops(some), writes=False)  # type: ignore[misc]
        return tops

    async def remove_history(self, channel: str) -> None:
        await self._do(lambda store, now: store.remove_history(channel, now))

    # Presence

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        exists: bool = await self._do(
            lambda store, now: store.presence.update(lease, ttl, changes, begin, now)
        )
        return exists

    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        removed: Sequence[PresenceChange] = await self._do(
            lambda store, now: store.presence.expire(now - grace)
        )
        return removed

    async def presence(self, channel: str) -> Mapping[str, bytes]:
        entries: Mapping[str, bytes] = await self._do(
            lambda store, now: store.presence.entries(channel), writes=False
        )
        return entries

    # Diagnostics

    async def inspect(self) -> Sequence[Diagnosis]:
        self._started()
        return await asyncio.to_thread(diagnostics.inspect, self.path)

    # Internal

    def _started_worker(self) -> Worker:
        self._started()
        assert self._worker is not None
        return self._worker

    async def _do(self, work: Work, writes: bool = True) -> Any:
        return await self._in_time(self._started_worker().submit(work, writes))

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await work
        except TimeoutError:
            raise EngineUnavailable(
                f"SQLite at {self.path!r} cannot be used: it is locked, or the disk does not respond, and "
                f"nothing was read or written within {ANSWER_TIMEOUT:g} s."
            ) from None

    async def _end(self, worker: Worker) -> None:
        worker.stop()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await worker.ended
        except TimeoutError:
            logger.warning("Left the thread of %r running: the disk does not respond.", self.path)
        else:
            # It has nothing left to do.
            worker.join()


def _path(url: str) -> str:
    """Return the absolute path in ``url``. Errors do not repeat the URL: it may hold a password."""
    expected = "Expected 'sqlite:///relative.db' or 'sqlite:////absolute/path.db'"
    scheme, separator, path = url.partition(":///")
    if scheme.lower() != "sqlite" or not separator:
        raise InvalidURL(f"{expected}, but got a URL with a host or without a path.")
    if path in ("", ":memory:"):
        raise InvalidURL(f"{expected}, but got no file. For the memory of one process, use 'memory://'.")
    if "?" in path or not path.isprintable():
        raise InvalidURL(f"{expected}, but got a path with a question mark or a control character.")
    if path.endswith("/"):
        raise InvalidURL(f"{expected}, but got a directory.")
    return os.path.abspath(path)
