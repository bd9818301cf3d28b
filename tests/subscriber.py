"""A member of a channel without a socket: takes everything, and keeps it."""

from __future__ import annotations

import asyncio
from sys import maxsize

from hubbub.core.frames import Batch
from hubbub.core.publication import Position
from tests.clients import DEADLINE


class Subscriber:
    """
    :param name: its id.
    """

    def __init__(self, name: str = "ann") -> None:
        self.id = name
        #: The payloads that it was handed.
        self.received: list[str] = []
        #: Where the channel went on each time when it was told that something is lost.
        self.breaks: list[Position] = []

    def write(self, batch: Batch) -> int:
        self.received += [frame.data.decode() for frame in batch.frames]
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("all of it had been taken")

    async def ready(self) -> int:
        return maxsize

    def broken(self, channel: str, position: Position) -> None:
        self.breaks.append(position)

    async def hears(self, *texts: str) -> None:
        """Wait until it was handed just this."""
        async with asyncio.timeout(DEADLINE):
            while self.received != list(texts) and len(self.received) <= len(texts):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert self.received == list(texts)
