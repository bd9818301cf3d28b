"""``memory://``: one process, nothing to install. A publication goes straight to this process's feeds."""

from __future__ import annotations

from typing import ClassVar

from hubbub.core.publication import Position, Publication
from hubbub.engines.base import Engine, Sink
from hubbub.exceptions import HubNotRunning, InvalidURL


class MemoryEngine(Engine):
    across_processes: ClassVar[bool] = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        if url.lower() != "memory://":
            # What is behind it is not repeated: it may have been meant for another engine, with a password.
            raise InvalidURL("Expected 'memory://' with nothing behind it, but got something behind it.")
        self._sink: Sink | None = None

    async def start(self, sink: Sink) -> None:
        self._sink = sink

    async def stop(self) -> None:
        self._sink = None

    async def publish(self, publication: Publication) -> Position:
        if self._sink is None:
            raise HubNotRunning("The memory engine has not been started.")
        self._sink.on_publication(publication)
        return Position(0, "")
