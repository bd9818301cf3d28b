"""A subscriber without a socket: takes everything, and keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from sys import maxsize

from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame
from hubbub.core.publication import Position
from hubbub.core.subscriber import Start
from tests.clients import DEADLINE


class Subscriber:
    """Receives publications.

    :param name: its id.
    """

    recovers_in_pieces = True

    def __init__(self, name: str = "ann") -> None:
        self.id = name
        #: The payloads that it was handed, the opening included.
        self.received: list[str] = []
        #: The position at which the channel continued, for each break that it was notified of.
        self.breaks: list[Position] = []

    def write(self, batch: Batch) -> int:
        self.received += [message.data.decode() for message in batch.messages]
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("all of it had been taken")

    async def ready(self) -> int:
        return maxsize

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        # As a connection does.
        messages = [frame.encoded(form.codec) for frame in missed]
        if (opening := form.opening(channel, start)) is not None:
            messages.insert(0, opening)
        if messages:
            self.write(form.reply(*messages))

    def broken(self, channel: str, position: Position) -> bool:
        self.breaks.append(position)
        return True

    async def hears(self, *texts: str) -> None:
        """Wait until it has received ``texts`` and nothing else."""
        async with asyncio.timeout(DEADLINE):
            while self.received != list(texts) and len(self.received) <= len(texts):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert self.received == list(texts)
