"""The begin of the server's shutdown, for streams that would not end by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from random import random
from typing import TypeVar

from hubbub.servers.limits import DRAIN_RATE

T = TypeVar("T")


class Stopping:
    """Begins once, when the server of this process begins to stop.

    At shutdown, servers wait until every response is complete: uvicorn without a limit, unless it is given
    ``--timeout-graceful-shutdown``. A response that streams events is never complete, unless its stream ends
    when the server stops::

        @app.get("/ticks")
        async def ticks() -> StreamingResponse:
            return StreamingResponse(hub.stopping.end(ticking()), media_type="text/event-stream")
    """

    def __init__(self) -> None:
        #: Whether the server has begun to stop.
        self.has_begun = False
        # Of the streams that are waiting for their next item.
        self._waits: set[asyncio.Timeout] = set()
        # Of other streams; objects of their own, because two of them may have equal callbacks.
        self._ends: dict[object, Callable[[], None]] = {}

    def begin(self, seconds: float = 0.0) -> None:
        """Record that the server has begun to stop, and end all streams.

        To be called on the server's event loop. Further calls have no effect.

        :param seconds: how long this may take. The streams of :meth:`calling` end at random moments, so that
            their clients do not all reconnect at once.
        """
        if self.has_begun:
            return
        self.has_begun = True
        for wait in self._waits:
            wait.reschedule(0)
        seconds = min(seconds, len(self._ends) / DRAIN_RATE)
        loop = asyncio.get_running_loop()
        for end in self._ends.values():
            loop.call_later(seconds * random(), end)

    @contextmanager
    def calling(self, end: Callable[[], None]) -> Iterator[None]:
        """Call ``end`` when the server begins to stop during the block; at once if it has begun already.

        :param end: ends a stream. It does not raise, and may be called after the block.
        """
        if self.has_begun:
            end()
        key = object()
        self._ends[key] = end
        try:
            yield
        finally:
            del self._ends[key]

    async def end(self, stream: AsyncIterable[T]) -> AsyncIterator[T]:
        """Yield the items of ``stream``, until it ends or the server begins to stop.

        At that moment the stream's pending ``await`` is cancelled, so that its ``finally`` blocks run.

        :param stream: an async generator or another async iterable.
        """
        items = aiter(stream)
        try:
            while not self.has_begun:
                try:
                    async with asyncio.timeout(None) as wait:
                        self._waits.add(wait)
                        try:
                            item = await anext(items)
                        finally:
                            self._waits.discard(wait)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if wait.expired():
                        return
                    raise
                yield item
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()
