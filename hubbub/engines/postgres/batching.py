"""Batching: the publications to a channel that come during one transaction are the batch of the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

from hubbub.core.history import History
from hubbub.core.publication import Position, Publication
from hubbub.engines.postgres.locks import Blocked, Locks

#: The most publications to one channel, and bytes, that are accepted in one transaction.
BATCH_SIZE, BATCH_BYTES = 100, 1_048_576


class Item(NamedTuple):
    """A publication that waits to be accepted."""

    publication: Publication
    history: History | None
    key: str | None
    accepted: asyncio.Future[Position]


#: Accepts a batch of publications to a channel, all or none, and returns their positions. Waits for the
#: channel's lock no longer than the seconds given; raises Blocked if they are not enough, and ValueError if a
#: publication has a value that cannot be stored.
Accept: TypeAlias = Callable[[str, Sequence[Item], float], Awaitable[Sequence[Position]]]


class Batching:
    """A queue for each channel that is being published to, and a task that empties it.

    :param accept: accepts one batch in one transaction.
    :param locks: decides when a queue has its turn.
    :param spawn: starts a task. It is cancelled before :meth:`close` is called.
    """

    def __init__(
        self, accept: Accept, locks: Locks, spawn: Callable[[Coroutine[Any, Any, None]], object]
    ) -> None:
        self._accept = accept
        self._locks = locks
        self._spawn = spawn
        self._queues: dict[str, deque[Item]] = {}

    def put(
        self, publication: Publication, history: History | None, key: str | None
    ) -> asyncio.Future[Position]:
        """Put ``publication`` into its channel's queue.

        :return: its position, once it is accepted. A publication whose future is cancelled before its batch
            is taken is not published.
        """
        accepted: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        queue = self._queues.get(publication.channel)
        if queue is None:
            queue = self._queues[publication.channel] = deque()
            self._spawn(self._empty(publication.channel, queue))
        queue.append(Item(publication, history, key, accepted))
        return accepted

    def close(self, exc: Exception) -> None:
        """Fail all publications that still wait, with ``exc``."""
        for queue in self._queues.values():
            _fail(queue, exc)
        self._queues.clear()

    async def _empty(self, channel: str, queue: deque[Item]) -> None:
        # Publications left of a batch that was refused. They are published one by one, so that only the one
        # with the wrong value fails.
        suspects = 0
        with self._locks.attempts() as attempts:
            while _has_any(queue):
                with suppress(Blocked):
                    async with attempts.turn() as patience:
                        # Taken no earlier: while it waited for its turn, publications were cancelled, and
                        # others came.
                        batch = _take(queue, 1 if suspects else BATCH_SIZE)
                        if not batch:
                            continue
                        try:
                            positions = await self._accept(channel, batch, patience)
                        except (asyncio.CancelledError, Blocked):
                            queue.extendleft(reversed(batch))
                            raise
                        except ValueError as exc:
                            if len(batch) > 1:
                                queue.extendleft(reversed(batch))
                                suspects = len(batch)
                                continue
                            _fail(batch, exc)
                        except Exception as exc:
                            _fail(batch, exc)
                        else:
                            for item, position in zip(batch, positions, strict=True):
                                if not item.accepted.done():
                                    item.accepted.set_result(position)
                        suspects = max(0, suspects - 1)
        del self._queues[channel]


def _has_any(queue: deque[Item]) -> bool:
    """Whether a publication of ``queue`` is still waited for; cancelled ones before it are removed."""
    while queue and queue[0].accepted.done():
        queue.popleft()
    return bool(queue)


def _take(queue: deque[Item], limit: int) -> list[Item]:
    """Take the next batch out of ``queue``."""
    batch: list[Item] = []
    size = 0
    while queue and len(batch) < limit and size < BATCH_BYTES:
        item = queue.popleft()
        if not item.accepted.done():
            batch.append(item)
            size += len(item.publication.data)
    return batch


def _fail(items: Sequence[Item] | deque[Item], exc: Exception) -> None:
    for item in items:
        if not item.accepted.done():
            item.accepted.set_exception(exc)
