"""A fake server and the engines of its nodes, all in one process, with outages and lost data at will.

::

    from hubbub.testing import Collector, FakeEngine, FakeServer, publication

    server = FakeServer()
    first, second = Collector(), Collector()
    engine, other = FakeEngine(server), FakeEngine(server)
    await engine.start(first)
    await other.start(second)
    await engine.subscribe("chat")
    await other.publish(publication("chat", "hello"))

    await first.heard("chat", ["hello"])

    server.disconnect()  # An outage: every call raises EngineUnavailable.
    await server.restart()  # All data is lost.
    server.reconnect()  # The sinks are notified.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import Position, Publication
from hubbub.engines.base import Engine, PresenceChange, Sink, Top, hand_over, notify
from hubbub.engines.memory import MemoryEngine
from hubbub.exceptions import EngineUnavailable

#: The reason and the error of every outage.
LOST = "Lost the fake server (the test disconnected it)."


class FakeServer:
    """The server that fake engines share.

    :param clock: returns seconds; ttls and leases expire by it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: All engines of this server, in the order in which they were made.
        self.engines: list[FakeEngine] = []
        #: The server's data. Call it directly to change them without an engine.
        self.memory = MemoryEngine("memory://", clock=clock)
        self._is_started = False

    async def start(self) -> None:
        """Start the server, unless it has been started. The first engine that is started does that."""
        if not self._is_started:
            self._is_started = True
            await self.memory.start(self)

    async def restart(self) -> None:
        """Lose all data. The engines do not notice."""
        await self.memory.stop()
        self.memory = MemoryEngine("memory://", clock=self._clock)
        await self.memory.start(self)

    def disconnect(self) -> None:
        """Begin an outage for all engines."""
        for engine in self.engines:
            engine.disconnect()

    def reconnect(self) -> None:
        """End the outage of all engines."""
        for engine in self.engines:
            engine.reconnect()

    # The sink of the server's data

    def on_publication(self, publication: Publication) -> None:
        for engine in self.engines:
            engine.receive(publication)

    def on_disconnect(self, reason: str) -> None: ...
    def on_reconnect(self) -> None: ...


class FakeEngine(Engine):
    """The connection of one node to a :class:`FakeServer`."""

    across_processes: ClassVar[bool] = True

    def __init__(self, server: FakeServer) -> None:
        super().__init__("memory://")
        self.server = server
        #: The channels that are subscribed to.
        self.channels: set[str] = set()
        #: Whether calls fail and publications are lost. Set it without :meth:`disconnect` for an outage that
        #: the engine does not notice.
        self.is_disconnected = False
        server.engines.append(self)

    def disconnect(self) -> None:
        """Begin an outage, and notify the sink."""
        self.is_disconnected = True
        if self._sink is not None:
            notify(self._sink.on_disconnect, LOST)

    def reconnect(self) -> None:
        """End the outage, and notify the sink."""
        self.is_disconnected = False
        if self._sink is not None:
            notify(self._sink.on_reconnect)

    def receive(self, publication: Publication) -> None:
        """Hand a publication of the server to the sink, if its channel is subscribed to."""
        if not self.is_disconnected and publication.channel in self.channels and self._sink is not None:
            hand_over(self._sink, publication)

    async def _request(self) -> MemoryEngine:
        self._started()
        # A request over a network takes at least one turn of the event loop.
        await asyncio.sleep(0)
        if self.is_disconnected or self._sink is None:
            raise EngineUnavailable(LOST)
        return self.server.memory

    # The engine's calls

    async def start(self, sink: Sink) -> None:
        self._sink = sink
        try:
            await self.server.start()
            await self._request()
        except BaseException:
            self._sink = None
            raise

    async def stop(self) -> None:
        self._sink = None
        self.channels.clear()

    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        return await (await self._request()).publish(publication, history, idempotency_key)

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        memory = await self._request()
        self.channels.add(channel)
        return await memory.subscribe(channel, history)

    async def unsubscribe(self, channel: str) -> None:
        self._started()
        self.channels.discard(channel)

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        return await (await self._request()).history(channel, since, limit, reverse)

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        return await (await self._request()).tops(channels)

    async def remove_history(self, channel: str) -> None:
        await (await self._request()).remove_history(channel)

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        return await (await self._request()).update_presence(lease, ttl, changes, begin)

    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        return await (await self._request()).expire_presence(grace)

    async def presence(self, channel: str) -> Mapping[str, bytes]:
        return await (await self._request()).presence(channel)


def set_back(engine: MemoryEngine, channel: str, lost: int) -> None:
    """Lose the last publications of a channel, as a server does that is restored from a backup.

    :param lost: how many publications, and how far its offset is set back.
    """
    stream = engine.streams.find(channel)
    if stream is None:
        raise LookupError(f"Expected a channel with history, but got {channel!r}.")
    stream.offset -= lost
    for _ in range(lost):
        stream.publications.pop()
