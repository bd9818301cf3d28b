"""A node: one process's share of a hub. Its feeds, its connections, and the one timer they share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from hubbub.core.feed import Feed, Member
from hubbub.core.publication import Position, Publication
from hubbub.engines.base import Engine

logger = logging.getLogger("hubbub.node")

#: Seconds between two looks at all connections.
TICK = 1.0

#: A publisher that never waits for anything would keep the loop from ever flushing what it publishes.
#: After this many bytes it is made to give way for one turn.
YIELD_AFTER = 65_536


class NodeConnection(Protocol):
    """What a node asks of the connections it holds."""

    id: str

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""

    @property
    def dropped(self) -> int:
        """Messages that the policy dropped because the client was slow."""

    def tick(self, now: float) -> None:
        """Called about once a second, with the event loop's time in seconds."""

    def end(self, code: int, reason: str) -> None:
        """Begin to close, without waiting."""


class Node:
    """One process's share of a hub, from start to stop.

    :param engine: where publications are sent to and come from.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.loop = asyncio.get_running_loop()
        #: Clients let go because they did not keep up.
        self.let_go = 0
        # Messages dropped for connections that have ended since.
        self._dropped = 0
        self._feeds: dict[str, Feed] = {}
        self._connections: dict[str, NodeConnection] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        # Set when the node stops: what clients are told, also those that come in meanwhile.
        self._ending: tuple[int, str] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        # Bytes collected by feeds since the last flush.
        self._collected = 0
        self._flushes: list[Callable[[], None]] = []

    async def start(self) -> None:
        await self._engine.start(self)
        self._ticker = self.loop.call_later(TICK, self._tick)

    async def stop(self, code: int, reason: str, timeout: float) -> None:
        """Close what is still connected, wait at most ``timeout`` seconds for it, and stop the engine."""
        self._ending = (code, reason)
        for connection in list(self._connections.values()):
            connection.end(code, reason)
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            logger.warning("%d connections did not end within %g s.", len(self._connections), timeout)
        if self._ticker is not None:
            self._ticker.cancel()
        await self._engine.stop()

    def stats(self) -> dict[str, int]:
        connections = self._connections.values()
        return {
            "connections": len(connections),
            "subscriptions": sum(map(len, self._feeds.values())),
            "channels": len(self._feeds),
            "backlog": sum(connection.backlog for connection in connections),
            "dropped": self._dropped + sum(connection.dropped for connection in connections),
            "let_go": self.let_go,
        }

    # Connections

    def add(self, connection: NodeConnection) -> None:
        self._connections[connection.id] = connection
        self._empty.clear()
        if self._ending is not None:
            connection.end(*self._ending)

    def remove(self, connection: NodeConnection) -> None:
        if self._connections.pop(connection.id, None) is not None:
            self._dropped += connection.dropped
        if not self._connections:
            self._empty.set()

    # Channels

    def join(self, channel: str, member: Member) -> None:
        feed = self._feeds.get(channel)
        if feed is None:
            feed = self._feeds[channel] = Feed(channel, self._schedule)
        feed.join(member)

    def leave(self, channel: str, member: Member) -> None:
        feed = self._feeds.get(channel)
        if feed is None:
            return
        feed.leave(member)
        if len(feed) == 0:
            del self._feeds[channel]

    # Publications

    async def publish(self, publication: Publication) -> Position:
        position = await self._engine.publish(publication)
        if self._collected > YIELD_AFTER:
            await asyncio.sleep(0)
        return position

    def on_publication(self, publication: Publication) -> None:
        """Called by the engine for everything that is published."""
        feed = self._feeds.get(publication.channel)
        if feed is not None:
            self._collected += feed.publish(publication).cost

    # The event loop

    def _schedule(self, flush: Callable[[], None]) -> None:
        # One callback for all the feeds that were published to in this turn.
        if not self._flushes:
            self.loop.call_soon(self._flush)
        self._flushes.append(flush)

    def _flush(self) -> None:
        flushes, self._flushes = self._flushes, []
        self._collected = 0
        for flush in flushes:
            flush()

    def _tick(self) -> None:
        self._ticker = self.loop.call_later(TICK, self._tick)
        now = self.loop.time()
        for connection in list(self._connections.values()):
            connection.tick(now)
