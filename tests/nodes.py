"""Nodes on a fake server that they share."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hubbub.channels.declaration import ChannelDeclaration
from hubbub.node.node import Node
from hubbub.testing.fake_engine import FakeEngine, FakeServer
from tests.clock import FakeClock


@asynccontextmanager
async def running(
    server: FakeServer, presence_ttl: float | None = None, clock: FakeClock | None = None
) -> AsyncIterator[Node]:
    """A node on ``server``. With a ``presence_ttl`` all channels have presence.

    :param clock: in place of the real clocks of the node.
    """
    engine = FakeEngine(server)
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
