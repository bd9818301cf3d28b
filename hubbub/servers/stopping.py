"""That the server has begun to stop, for streams that would not end by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


class Stopping:
    """Told once, when the server of this process begins to stop.

    Servers wait at shutdown until every response is complete: uvicorn without an end, unless it is given
    ``--timeout-graceful-shutdown``. The response that is a stream of events never is, unless the stream ends
    by itself::

        @app.get("/ticks")
        async def ticks() -> StreamingResponse:
            return StreamingResponse(hub.stopping.end(ticking()), media_type="text/event-stream")
    """

    def __init__(self) -> None:
        #: Whether the server has begun to stop.
        self.has_begun = False
        # Of the items that streams wait for.
        self._waits: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        """The server has begun to stop. Called on its event loop; only the first call counts."""
        if self.has_begun:
            return
        self.has_begun = True
        for wait in self._waits:
            wait.reschedule(0)

    async def end(self, stream: AsyncIterable[T]) -> AsyncIterator[T]:
        """The items of ``stream``, until it ends or the server begins to stop. What ``stream`` waits for at
        that moment is cancelled, so that its ``finally`` blocks run."""
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
