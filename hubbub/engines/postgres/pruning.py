"""Pruning: removing expired rows, and streams that have been unused for long."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from random import random

from hubbub.engines.postgres.reader import Reader
from hubbub.engines.postgres.requests import Requests
from hubbub.engines.postgres.schema import HANDOVER, Schema
from hubbub.exceptions import EngineUnavailable

logger = logging.getLogger(__name__)

#: Seconds between two rounds of pruning, on average; rows removed by one statement; and seconds between two
#: rounds of forgetting streams.
PRUNE, PRUNE_LIMIT, PRUNE_STREAMS = 10.0, 1000, 600.0


class Pruner:
    """Prunes the schema of one engine; of several nodes that do it at once, one does the work."""

    def __init__(self, schema: Schema, requests: Requests, reader: Reader) -> None:
        self._prune_rows = schema.sql("SELECT {schema}.prune($1::text::pg_snapshot, $2)")
        self._prune_streams = schema.sql("SELECT {schema}.prune_streams($1, $2)")
        self._requests = requests
        self._reader = reader

    async def run(self) -> None:
        """Prune until cancelled."""
        loop = asyncio.get_running_loop()
        # Snapshots of the database, and when they were taken; the oldest first. All nodes have had HANDOVER
        # seconds to read the publications that the oldest one shows.
        snapshots: deque[tuple[float, str]] = deque()
        streams_pruned = loop.time()
        while True:
            await asyncio.sleep(PRUNE * (0.5 + random()))
            try:
                taken = loop.time()
                snapshots.append((taken, await self._snapshot()))
                while len(snapshots) > 1 and snapshots[1][0] + HANDOVER <= taken:
                    snapshots.popleft()
                if snapshots[0][0] + HANDOVER <= taken:
                    while await self._prune(snapshots[0][1]) >= PRUNE_LIMIT:
                        pass
                if streams_pruned + PRUNE_STREAMS <= taken:
                    streams_pruned = taken
                    await self._forget_streams()
            except (EngineUnavailable, ValueError) as exc:
                logger.debug("Could not prune: %s", exc)

    async def _snapshot(self) -> str:
        snapshot: str = await self._requests.ask(
            lambda connection: connection.fetchval("SELECT pg_current_snapshot()::text")
        )
        return snapshot

    async def _prune(self, snapshot: str) -> int:
        """Remove some expired rows; return how many."""
        removed = await self._requests.ask(
            lambda connection: connection.fetchval(self._prune_rows, snapshot, PRUNE_LIMIT)
        )
        return int(removed)

    async def _forget_streams(self) -> None:
        channels = self._reader.channels
        await self._requests.ask(
            lambda connection: connection.execute(self._prune_streams, channels, PRUNE_LIMIT)
        )
