"""Health of the engine: whether it answers, whether it accepts publications, and its outages.

An engine may answer and accept nothing: its disk or its memory is full. So a publication that was refused is
remembered. The health check then writes as much itself, until the engine accepts it. Otherwise, a hub that a
load balancer has taken out, and that publishes nothing therefore, would stay unhealthy for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hubbub.core.history import History
from hubbub.core.publication import INTERNAL, Position, Publication, publication_ids
from hubbub.engines.base import Engine
from hubbub.exceptions import EngineUnavailable
from hubbub.node.clock import Clock
from hubbub.node.control import CONTROL
from hubbub.types import Health

#: The channel that a health check writes to.
HEALTH = f"{INTERNAL}health"
HEALTH_HISTORY = History(size=1, ttl=60)

#: Bytes that a health check writes at most.
MAX_HEALTH_WRITE = 65_536


class EngineHealth:
    """The health of an engine, as one node sees it.

    :param engine: the engine.
    :param clock: by which outages and answers are timed.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._ids = publication_ids()
        #: Outages since the node was made.
        self.outages = 0
        # Seconds of all outages that are over, and when the present one began. In one attribute: counts are
        # read from other threads, too.
        self._outage: tuple[float, float | None] = (0.0, None)
        self._outage_reason = ""
        # Bytes of the last publication that the engine refused; None if it has accepted another one since.
        self._refused: int | None = None

    @property
    def outage_seconds(self) -> float:
        """Seconds since the engine was lost; 0 while it is connected."""
        _, since = self._outage
        return 0.0 if since is None else self._clock.time() - since

    @property
    def all_outage_seconds(self) -> float:
        """Seconds of all outages since the node was made, the present one included."""
        past, since = self._outage
        return past if since is None else past + self._clock.time() - since

    def lost(self, reason: str) -> None:
        """Note that an outage has begun."""
        self.outages += 1
        self._outage = (self.all_outage_seconds, self._clock.time())
        self._outage_reason = reason

    def reconnected(self) -> None:
        """Note that the outage is over."""
        self._outage = (self.all_outage_seconds, None)
        self._outage_reason = ""

    async def publish(
        self, publication: Publication, history: History | None, idempotency_key: str | None = None
    ) -> Position:
        """Publish, and remember whether the engine has accepted it.

        :raises EngineUnavailable: the engine cannot be reached, or refuses the publication.
        """
        try:
            position = await self._engine.publish(publication, history, idempotency_key)
        except EngineUnavailable:
            self._refused = len(publication.data)
            raise
        self._refused = None
        return position

    async def check(self, timeout: float, presence_error: Callable[[], str]) -> Health:
        """Ask the engine whether it answers and accepts publications.

        :param timeout: seconds that the engine has for its answer.
        :param presence_error: returns why presence could not be updated; empty if it could.
        """
        begin = self._clock.time()
        error = ""
        try:
            async with asyncio.timeout(timeout):
                await self._engine.history(CONTROL, limit=0)
                if self._refused is not None:
                    await self._write_again(self._refused)
        except TimeoutError:
            error = self._outage_reason or f"The engine did not answer within {timeout:g} s."
        except EngineUnavailable as exc:
            error = str(exc)
        error = error or presence_error()
        return Health(not error, self._clock.time() - begin, self.outage_seconds, error)

    async def _write_again(self, size: int) -> None:
        payload = bytes(min(size, MAX_HEALTH_WRITE))
        await self.publish(Publication(HEALTH, payload, "binary", id=next(self._ids)), HEALTH_HISTORY)
