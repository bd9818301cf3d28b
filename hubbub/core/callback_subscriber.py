"""A listener: a member of a feed that is no client but a part of this node."""

from __future__ import annotations

import logging
from collections.abc import Callable
from sys import maxsize

from hubbub.core.frames import Batch
from hubbub.core.publication import Position

logger = logging.getLogger("hubbub.listener")


class CallbackSubscriber:
    """Takes what is published in a channel that nodes talk to one another in.

    :param name: what it is called among the feed's members.
    :param on_data: called with each payload.
    :param on_broken: called when something that was published is lost.
    """

    def __init__(
        self, name: str, on_data: Callable[[bytes], None], on_broken: Callable[[], None] = lambda: None
    ) -> None:
        self.id = name
        self._on_data = on_data
        self._on_broken = on_broken

    def write(self, batch: Batch) -> int:
        for frame in batch.frames:
            try:
                self._on_data(frame.data)
            except Exception:
                # What comes after it does not suffer from it.
                logger.exception("Could not take what came for %r.", self.id)
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("Expected all of a batch to be taken.")

    async def ready(self) -> int:
        return maxsize

    def broken(self, channel: str, position: Position) -> None:
        self._on_broken()
