"""The engine for ``sqlite:///file.db``: asks the worker, and waits no longer than a bounded time."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import Position, Publication
from hubbub.engines.base import Diagnosis, Engine, PresenceChange, Sink, Top
from hubbub.engines.sqlite import diagnostics
from hubbub.engines.sqlite.worker import Work, Worker
from hubbub.exceptions import EngineUnavailable, HubNotRunning, InvalidURL

T = TypeVar("T")

logger = logging.getLogger("hubbub.engines.sqlite")

#: Seconds after which we give up: the file is locked, or the disk does not answer.
DEADLINE = 5.0

#: Channels whose tops are read at once: what is published meanwhile waits for it.
TOPS = 500


class SQLiteEngine(Engine):
    """One file for all the processes of one machine. What is in it survives them.

    A process gets what it publishes itself at once, and what others publish when it looks at the file: 2 ms
    later at the most while there is something going on, 25 ms after a tenth of a second of silence. The file
    is in WAL mode, which needs a local disk. Commits are not synced one by one: when the machine loses power
    (not: when a process is killed), the last ones may be lost.

    The file holds what was published within the last minute, whatever the channels keep. Should it be removed
    or replaced while in use, together with the ``-wal`` and ``-shm`` files beside it, all processes open the
    new one, and go on from what is in it.

    :param url: ``sqlite:///relative.db`` or ``sqlite:////absolute/path.db``. The directory must exist; the
        file is made if it does not. A relative path is taken from the directory the process is in now.
    :param namespace: several of them may share a file.
    :raises InvalidURL: there is no path, or more than a path.
    """

    across_processes: ClassVar[bool] = True

    def __init__(self, url: str, namespace: str = "hubbub") -> None:
        super().__init__(url, namespace)
        self._path = _path(url)
        self._worker: Worker | None = None

    async def start(self, sink: Sink) -> None:
        worker = Worker(self._path, self.namespace, sink)
        worker.start()
        try:
            await self._in_time(worker.opened)
        except BaseException:
            await self._end(worker)
            raise
        self._worker = worker

    async def stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await self._end(worker)

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

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        return await self._in_time(self._started().subscribe(channel, history))

    async def unsubscribe(self, channel: str) -> None:
        self._started().unsubscribe(channel)

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        page: HistoryPage = await self._do(
            lambda store, now: store.history(channel, since, limit, reverse, now), writes=False
        )
        return page

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        tops: list[Top] = []
        for start in range(0, len(channels), TOPS):
            tops += await self._tops(channels[start : start + TOPS])
        return tops

    async def remove_history(self, channel: str) -> None:
        await self._do(lambda store, now: store.remove_history(channel, now))

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        is_there: bool = await self._do(
            lambda store, now: store.presence.update(lease, ttl, changes, begin, now)
        )
        return is_there

    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        removed: Sequence[PresenceChange] = await self._do(
            lambda store, now: store.presence.expire(now - grace)
        )
        return removed

    async def presence(self, channel: str) -> Mapping[str, bytes]:
        found: Mapping[str, bytes] = await self._do(
            lambda store, now: store.presence.of(channel), writes=False
        )
        return found

    async def inspect(self) -> Sequence[Diagnosis]:
        self._started()
        return await asyncio.to_thread(diagnostics.inspect, self._path)

    # Inside

    def _started(self) -> Worker:
        if self._worker is None:
            raise HubNotRunning("The SQLite engine has not been started.")
        return self._worker

    async def _tops(self, channels: Sequence[str]) -> list[Top]:
        tops: list[Top] = await self._do(lambda store, now: store.tops(channels), writes=False)
        return tops

    async def _do(self, work: Work, writes: bool = True) -> Any:
        return await self._in_time(self._started().submit(work, writes))

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(DEADLINE):
                return await work
        except TimeoutError:
            raise EngineUnavailable(
                f"Expected to read and write {self._path!r} within {DEADLINE:g} s, but it is locked, or the "
                "disk does not answer."
            ) from None

    async def _end(self, worker: Worker) -> None:
        worker.stop()
        try:
            async with asyncio.timeout(DEADLINE):
                await worker.ended
        except TimeoutError:
            logger.warning("Left the thread for %r behind: the disk does not answer.", self._path)
        else:
            # It has nothing left to do.
            worker.join()


def _path(url: str) -> str:
    """The absolute path in ``url``. What is not understood is not repeated: it may hold a password."""
    expected = "Expected 'sqlite:///relative.db' or 'sqlite:////absolute/path.db'"
    scheme, separator, path = url.partition(":///")
    if scheme.lower() != "sqlite" or not separator:
        raise InvalidURL(f"{expected}, but got a URL with a host or without a path.")
    if path in ("", ":memory:"):
        raise InvalidURL(f"{expected}, but got no file. For one process's memory, there is 'memory://'.")
    if "?" in path or not path.isprintable():
        raise InvalidURL(f"{expected}, but got a path with a question mark or a control character.")
    if path.endswith("/"):
        raise InvalidURL(f"{expected}, but got a directory.")
    return os.path.abspath(path)
