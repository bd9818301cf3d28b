"""A measured hub: its counts, readable from any thread."""

from __future__ import annotations

import logging

from hubbub.channels.handler_seconds import HandlerSeconds
from hubbub.exceptions import EngineUnavailable, HubNotRunning
from hubbub.node.lifecycle import Lifecycle
from hubbub.node.node import Node
from hubbub.threads import running_loop
from hubbub.types import Stats

logger = logging.getLogger(__name__)


class Measured:
    """A hub, as its metrics see it.

    :param name: the value of the label ``hub``: the namespace of the hub.
    :param lifecycle: has the node whose counts are read.
    """

    def __init__(self, name: str, lifecycle: Lifecycle) -> None:
        self.name = name
        #: The durations of the handlers of the hub's declared channels.
        self.handler_seconds = HandlerSeconds()
        #: The counts at the end of the last run, for exporters that collect once more after it.
        self.final: Stats | None = None
        self._lifecycle = lifecycle

    @property
    def is_running(self) -> bool:
        """Whether the hub runs."""
        return self._lifecycle.node is not None

    def stopped(self, node: Node) -> None:
        """Keep the counts of ``node``, which has stopped."""
        self.final = Stats(**node.stats())

    def read(self) -> Stats | None:
        """Return the counts of the hub, or ``None`` if it does not run.

        A reader in another thread waits until the event loop of the hub has made them. Otherwise a connection
        that ends meanwhile could be counted twice, and a count that falls again looks like a restart.
        """
        node = self._lifecycle.node
        if node is None:
            return None
        if running_loop() is node.loop:
            return Stats(**node.stats())
        try:
            return self._lifecycle.call(_stats)
        except (HubNotRunning, EngineUnavailable) as exc:
            logger.debug("Could not read the counts of hub %r (%s); exporting none.", self.name, exc)
            return None


async def _stats(node: Node) -> Stats:
    return Stats(**node.stats())
