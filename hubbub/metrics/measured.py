"""A measured hub: its counts, readable from any thread."""

from __future__ import annotations

from hubbub.channels.handler_seconds import HandlerSeconds
from hubbub.node.lifecycle import Lifecycle
from hubbub.node.node import Node
from hubbub.types import Stats


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

    def read(self) -> Stats | None:
        """Return the counts of the hub, or ``None`` if it does not run. Any thread may call this."""
        node = self._lifecycle.node
        if node is None or node.loop.is_closed():
            return None
        return Stats(**node.stats())

    def stopped(self, node: Node) -> None:
        """Keep the counts of ``node``, which has stopped."""
        self.final = Stats(**node.stats())
