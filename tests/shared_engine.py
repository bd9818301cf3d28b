"""Nodes on a fake server that they share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hubbub.channels.declaration import ChannelDeclaration
from hubbub.node.node import Node
from hubbub.testing.fake_engine import FakeEngine, FakeServer


@asynccontextmanager
async def running(server: FakeServer, presence_ttl: float | None = None) -> AsyncIterator[Node]:
    """A node on ``server``. With a ``presence_ttl`` all channels have presence."""
    engine = FakeEngine(server)
    if presence_ttl is None:
        node = Node(engine)
    else:
        node = Node(engine, lambda name: ChannelDeclaration(name, presence=True), presence_ttl)
    await node.start(keeps_presence=presence_ttl is not None)
    try:
        yield node
    finally:
        await node.stop(1012, "restart", 1)
