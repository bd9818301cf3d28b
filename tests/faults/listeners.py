"""Clients of ``tests/apps/streams.py`` that reconnect, resume and count what they receive."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from random import Random
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

from hubbub import Position
from hubbub.codes import CloseCode
from tests.clients import connect, reset
from tests.faults.ledger import Account, Run

#: Seconds that a client waits for its connection.
PATIENCE = 5.0


class Listener:
    """A client that reconnects a moment after its connection has ended, and resumes from its position.

    :param url: the URL of the WebSocket, without a query.
    :param random: chooses the time until it reconnects.
    """

    def __init__(self, url: str, name: str, random: Random) -> None:
        #: The processes to which it was connected, and whether it is connected now.
        self.pids: list[int] = []
        self.is_joined = asyncio.Event()
        self._url = url
        self._client: ClientConnection | None = None
        self._random = random
        self.account = Account(name)
        self.begin()
        self._task = asyncio.create_task(self._run())

    @property
    def position(self) -> Position | None:
        runs = self.account.runs
        return runs[-1].end if runs else None

    def is_at(self, top: Position) -> bool:
        """Return whether it has received everything up to ``top``."""
        # It may not know the name of its epoch, see _notified().
        return self.position is not None and self.position in (top, Position(top.offset, ""))

    def begin(self) -> None:
        """Begin a new account at the current position."""
        runs = self.account.runs[-1:]
        self.account = Account(self.account.name, [Run(run.end) for run in runs])
        #: The texts it has received since.
        self.received: set[str] = set()
        #: How often it has resumed.
        self.resumes = 0
        #: The longest time without a message, in seconds.
        self.silence = 0.0
        self._last_received: float | None = None

    def cut(self) -> None:
        """Reset the connection."""
        if self._client is not None:
            # A worker that was killed may have closed it.
            with suppress(OSError):
                reset(self._client)

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            with suppress(OSError, WebSocketException):
                await self._listen()
            self.is_joined.clear()
            await asyncio.sleep(0.2 * self._random.random())

    async def _listen(self) -> None:
        position = self.position
        query = "" if position is None else f"?offset={position.offset}&epoch={position.epoch}"
        async with connect(self._url + query, open_timeout=PATIENCE) as client:
            self._client = client
            try:
                async for frame in client:
                    if str(frame).startswith("{"):
                        self._notified(json.loads(frame))
                    else:
                        self._received(str(frame))
            finally:
                self._client = None
                self.account.breaks += client.close_code == CloseCode.INSUFFICIENT_STATE

    def _received(self, text: str) -> None:
        now = asyncio.get_running_loop().time()
        if self._last_received is not None:
            self.silence = max(self.silence, now - self._last_received)
        self._last_received = now
        self.received.add(text)
        self.account.runs[-1].texts.append(text)

    def _notified(self, message: dict[str, Any]) -> None:
        runs = self.account.runs
        match message:
            case {"pid": pid}:
                self.pids.append(pid)
            case {"position": [offset, epoch]}:
                position = Position(offset, epoch)
                if not runs:
                    runs.append(Run(position))
                elif runs[-1].start.epoch == "" and runs[-1].end.offset == offset:
                    # Its position is from before there was an epoch.
                    runs[-1].start = runs[-1].start._replace(epoch=epoch)
                    self.resumes += 1
                elif runs[-1].end == position:
                    self.resumes += 1
                else:
                    self.account.objections.append(
                        f"it is at {runs[-1].end}, but the server has sent everything up to {position}"
                    )
                self.is_joined.set()
            case {"lost": [offset, epoch]}:
                runs.append(Run(Position(offset, epoch)))
            case _:
                self.account.objections.append(f"it does not understand {message}")
