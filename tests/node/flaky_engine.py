"""An engine in memory that loses publications, has outages, and counts requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

from hubbub import EngineUnavailable, History, Position, Publication
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.history import HistoryPage
from hubbub.engines.base import Sink, Top
from hubbub.engines.memory import MemoryEngine
from hubbub.node.node import Node
from hubbub.testing.fake_engine import set_back
from tests.clock import FakeClock


class FlakyEngine(MemoryEngine):
    """Answers after a moment, or not at all."""

    across_processes: ClassVar[bool] = True

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__("memory://", clock=clock)
        #: Whether there is an outage.
        self.is_disconnected = False
        #: Whether publications are lost on their way to the node.
        self.loses = False
        self.reads = 0
        self.subscribed: list[str] = []
        self.unsubscribed: list[str] = []

    async def start(self, sink: Sink) -> None:
        self.node = sink
        await super().start(self)

    def on_publication(self, publication: Publication) -> None:
        if not self.loses:
            self.node.on_publication(publication)

    def on_disconnect(self, reason: str) -> None:
        raise AssertionError("called on the node")

    def on_reconnect(self) -> None:
        raise AssertionError("called on the node")

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        await self._respond()
        self.subscribed.append(channel)
        return await super().subscribe(channel, history)

    async def unsubscribe(self, channel: str) -> None:
        await self._respond()
        self.unsubscribed.append(channel)

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        self.reads += 1
        await self._respond()
        return await super().history(channel, since, limit, reverse)

    def set_back(self, channel: str, lost: int) -> None:
        """To an earlier state, as a server that had not saved the last ones."""
        set_back(self, channel, lost)

    async def _respond(self) -> None:
        await asyncio.sleep(0.001)
        if self.is_disconnected:
            raise EngineUnavailable("Lost the engine of the test.")


@asynccontextmanager
async def running(engine: FlakyEngine, history: History, clock: FakeClock) -> AsyncIterator[Node]:
    """A node on ``engine`` on which only the channel ``chat`` has a history."""
    declaration = ChannelDeclaration("chat", history)
    node = Node(engine, lambda name: declaration if name == "chat" else None, clock=clock)
    await node.start()
    try:
        yield node
    finally:
        await node.stop(1012, "", 1)


async def say(node: Node, *texts: str, channel: str = "chat") -> list[Position]:
    """Publish ``texts``, one after the other."""
    return [
        await node.publish(Publication(channel, text.encode(), "text", None, f"id-{text}")) for text in texts
    ]
