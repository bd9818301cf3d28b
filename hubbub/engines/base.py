"""What an engine is: the place where a hub's publications meet, whichever process they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from hubbub.core.publication import Position, Publication


class Sink(Protocol):
    """Where an engine hands over what was published. Called on the event loop of :meth:`Engine.start`."""

    def on_publication(self, publication: Publication) -> None: ...


class Engine(ABC):
    """One implementation per URL scheme.

    :param url: the URL given to ``Hub``, from which the engine takes what it needs to connect.
    """

    #: Whether hubs in different processes that use the same URL reach one another.
    across_processes: ClassVar[bool]

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    async def start(self, sink: Sink) -> None:
        """Connect; from now on hand every publication to ``sink``."""

    @abstractmethod
    async def stop(self) -> None:
        """Hand over nothing more and release everything. An engine can be started again."""

    @abstractmethod
    async def publish(self, publication: Publication) -> Position:
        """Accept ``publication``, in one order per channel. Returns its position when it is accepted."""
