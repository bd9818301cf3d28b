"""An engine that several nodes of one process share, as they would share a server; for tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import Position, Publication
from hubbub.engines.base import Engine, PresenceChange, Sink, Top
from hubbub.engines.memory import MemoryEngine
from hubbub.exceptions import EngineUnavailable
from hubbub.node.node import Node
from tests.clock import FakeClock


class Server:
    """What the nodes share; it can go away, and lose its data."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.nodes: list[SharedEngine] = []
        self.clock = clock
        self.restart()

    def restart(self) -> None:
        """Without its data."""
        self.memory = MemoryEngine("memory://", clock=self.clock)
        self.memory._sink = self

    def on_publication(self, publication: Publication) -> None:
        for node in self.nodes:
            if not node.is_away and publication.channel in node.channels and node.sink is not None:
                node.sink.on_publication(publication)

    def on_disconnect(self, reason: str) -> None: ...
    def on_reconnect(self) -> None: ...

    def go(self) -> None:
        for node in self.nodes:
            node.go()

    def come_back(self) -> None:
        for node in self.nodes:
            node.come_back()


class SharedEngine(Engine):
    """One node's way to the server."""

    across_processes: ClassVar[bool] = True

    def __init__(self, server: Server) -> None:
        super().__init__("memory://")
        self.server = server
        self.channels: set[str] = set()
        self.sink: Sink | None = None
        self.is_away = False
        server.nodes.append(self)

    def go(self) -> None:
        self.is_away = True
        if self.sink is not None:
            self.sink.on_disconnect("the test took it away")

    def come_back(self) -> None:
        self.is_away = False
        if self.sink is not None:
            self.sink.on_reconnect()

    async def _asked(self) -> MemoryEngine:
        # Whatever goes over a network takes a turn of the loop.
        await asyncio.sleep(0)
        if self.is_away or self.sink is None:
            raise EngineUnavailable("The test took it away.")
        return self.server.memory

    async def start(self, sink: Sink) -> None:
        self.sink = sink
        await self._asked()

    async def stop(self) -> None:
        self.sink = None
        self.channels.clear()

    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        return await (await self._asked()).publish(publication, history, idempotency_key)

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        memory = await self._asked()
        self.channels.add(channel)
        return await memory.subscribe(channel, history)

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        return await (await self._asked()).tops(channels)

    async def unsubscribe(self, channel: str) -> None:
        self.channels.discard(channel)

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        return await (await self._asked()).history(channel, since, limit, reverse)

    async def remove_history(self, channel: str) -> None:
        await (await self._asked()).remove_history(channel)

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        return await (await self._asked()).update_presence(lease, ttl, changes, begin)

    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        return await (await self._asked()).expire_presence(grace)

    async def presence(self, channel: str) -> Mapping[str, bytes]:
        return await (await self._asked()).presence(channel)


@asynccontextmanager
async def running(
    server: Server, presence_ttl: float | None = None, clock: FakeClock | None = None
) -> AsyncIterator[Node]:
    """A node on ``server``. With a ``presence_ttl`` all channels have presence.

    :param clock: in place of the real clocks of the node.
    """
    engine = SharedEngine(server)
    wall_clock = time.time if clock is None else clock
    if presence_ttl is None:
        node = Node(engine, clock=clock, wall_clock=wall_clock)
    else:
        node = Node(
            engine,
            lambda name: ChannelDeclaration(name, presence=True),
            presence_ttl,
            clock=clock,
            wall_clock=wall_clock,
        )
    await node.start(has_presence=presence_ttl is not None)
    try:
        yield node
    finally:
        await node.stop(1012, "restart", 1)
