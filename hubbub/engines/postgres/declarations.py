"""Declaring the histories of channels, and declaring them again after the database has lost them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from hubbub.core.history import History
from hubbub.engines.base import batched
from hubbub.engines.postgres import statements
from hubbub.engines.postgres.reader import Reader
from hubbub.engines.postgres.requests import Requests
from hubbub.engines.postgres.schema import Schema
from hubbub.exceptions import EngineUnavailable

logger = logging.getLogger(__name__)

#: Channels in one question which of them have no history.
CHUNK = 1000


class Declarations:
    """Declares histories in the database."""

    def __init__(self, schema: Schema, requests: Requests, reader: Reader) -> None:
        self._declare_one = schema.sql(statements.DECLARE)
        self._undeclared = schema.sql(statements.UNDECLARED)
        self._requests = requests
        self._reader = reader

    async def declare(self, channel: str, history: History) -> None:
        """Give the channel ``history``; wait for transactions that have locked it.

        :raises EngineUnavailable: that takes too long.
        """
        await self._requests.ask_with_lock(partial(self._declare, channel, history))

    async def declare_lost(self) -> None:
        """Declare again the histories of subscribed channels that the database has lost.

        A channel that is blocked, or fails, is left to the next poll, which finds it undeclared.
        """
        histories = self._reader.declared
        for channels in batched(list(histories), CHUNK):
            try:
                lost = await self._requests.ask(
                    lambda connection, some=channels: connection.fetch(self._undeclared, some)  # type: ignore[misc]
                )
            except EngineUnavailable as exc:
                logger.debug("Could not find out which histories are lost: %s", exc)
                return
            await asyncio.gather(*(self._declare_again(row["channel"], histories) for row in lost))

    async def _declare_again(self, channel: str, histories: Mapping[str, History]) -> None:
        try:
            with self._requests.locks.attempts() as attempts:
                async with attempts.turn() as patience:
                    await self._declare(channel, histories[channel], patience)
        except EngineUnavailable as exc:
            logger.debug("Could not declare the history of %r again: %s", channel, exc)

    async def _declare(self, channel: str, history: History, patience: float) -> None:
        await self._requests.ask(
            lambda connection: connection.execute(
                self._declare_one, statements.milliseconds(patience), channel, history.size, history.ttl
            )
        )
