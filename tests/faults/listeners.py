"""Clients of ``tests/apps/streams.py`` that come back when they are cut off, and count what they get."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from websockets.exceptions import WebSocketException

from tests.clients import connect


class Listener:
    """A client that stays away for a moment when its connection ends, and resumes where it was.

    :param url: of the WebSocket, without a query.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[str] = []
        #: How often it was told that something is lost.
        self.losses = 0
        #: How often it was connected, and to which processes.
        self.pids: list[int] = []
        self.is_joined = asyncio.Event()
        self._position: tuple[int, str] | None = None
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            with suppress(OSError, WebSocketException, TimeoutError):
                await self._listen()
            await asyncio.sleep(0.05)

    async def _listen(self) -> None:
        query = "" if self._position is None else "?offset={}&epoch={}".format(*self._position)
        async with connect(self.url + query, open_timeout=5) as client:
            async for frame in client:
                told = json.loads(frame) if str(frame).startswith("{") else None
                match told:
                    case None:
                        self.received.append(str(frame))
                        if self._position is not None:
                            self._position = (self._position[0] + 1, self._position[1])
                    case {"pid": pid}:
                        self.pids.append(pid)
                    case {"position": [offset, epoch]}:
                        if self._position is not None:
                            assert self._position == (offset, epoch), "what was missed does not add up"
                        self._position = (offset, epoch)
                        self.is_joined.set()
                    case {"lost": [offset, epoch]}:
                        self.losses += 1
                        self._position = (offset, epoch)
