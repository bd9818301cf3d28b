"""What an engine is: the place where a hub's publications meet, whichever process they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from hubbub.core.publication import Position, Publication
from hubbub.types import History

#: Seconds in which a second publication with the same idempotency key is taken for the first.
IDEMPOTENCY_WINDOW = 300.0

#: Seconds between two tries when an engine cannot be reached: a random time about a limit that doubles.
RETRY_MIN, RETRY_MAX = 0.1, 5.0


class Page(NamedTuple):
    """A piece of a channel's history, read in one go.

    :param publications: in the order asked for, without a gap.
    :param position: where the channel stood at that moment, which may be further on.
    """

    publications: Sequence[Publication]
    position: Position


class Sink(Protocol):
    """Where an engine hands over what it gets. Called on the event loop of :meth:`Engine.start`."""

    def on_publication(self, publication: Publication) -> None:
        """Something was published to a channel this node is subscribed to. Engines may hand over a
        publication twice, late, or not at all: with a position, that is noticed."""

    def on_reconnect(self) -> None:
        """The engine was away and is back, all subscriptions included. Whatever was published meanwhile has
        not been handed over."""


class Engine(ABC):
    """One implementation per URL scheme. ``hubbub.engines.contract`` tests what is promised here.

    Methods raise :class:`~hubbub.exceptions.EngineUnavailable` when the engine cannot be reached, within
    a bounded time. An engine heals its own connections: it tries again by itself, subscribes again, and then
    calls ``sink.on_reconnect``. It never takes publications while it cannot hear any.

    :param url: the URL given to ``Hub``, from which the engine takes what it needs to connect.
    :param namespace: keeps apart what shares a server; prefixed to every name the engine uses there.
    """

    #: Whether hubs in different processes that use the same URL reach one another.
    across_processes: ClassVar[bool]

    def __init__(self, url: str, namespace: str = "hubbub") -> None:
        self.url = url
        self.namespace = namespace

    @abstractmethod
    async def start(self, sink: Sink) -> None:
        """Connect; from now on hand what comes to ``sink``.

        :raises EngineUnavailable: there is nobody at the URL.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Hand over nothing more and release everything. An engine can be started again."""

    @abstractmethod
    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        """Accept ``publication``, in one order per channel, and announce it to every node that is subscribed.

        With ``history`` it gets the next offset and is kept; both happen, or neither, and they are announced
        in that order. A channel that has a history keeps it: without ``history``, what it was given last
        holds. Only in channels that never had one is a publication not kept; its position is ``START``.

        :param idempotency_key: a second publication to this channel with the same key, within
            ``IDEMPOTENCY_WINDOW``, is not published, and the position of the first is returned.
        :return: its position, once it is accepted.
        """

    async def publish_in(
        self, publication: Publication, history: History | None, idempotency_key: str | None, using: object
    ) -> Position:
        """Like :meth:`publish`, as a part of the transaction that ``using``, a connection to a database, is
        in: with its commit, and never without. Until then its position is not final.

        :raises TypeError: ``using`` is nothing this engine can publish with. Most engines cannot at all.
        """
        raise TypeError(
            "Expected an engine that takes part in transactions ('postgresql://') for 'using', but got "
            f"{type(self).__name__}."
        )

    @abstractmethod
    async def subscribe(self, channel: str, history: History | None = None) -> Position:
        """Hand over what is published to ``channel`` from now on; with ``history``, the channel has one from
        now on. Returns where it stands: everything after that is handed over, or ``on_reconnect`` is called.
        """

    @abstractmethod
    async def unsubscribe(self, channel: str) -> None:
        """Hand over nothing more of ``channel``."""

    @abstractmethod
    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> Page:
        """What the channel has kept, as one consistent picture.

        :param since: only what comes after this position (before it, if ``reverse``). If it is of another
            epoch than the channel, there are no publications, and the page's position tells. ``START`` is
            of every epoch.
        :param limit: publications at the most; 0 asks for the position alone.
        :param reverse: the newest first.
        """

    @abstractmethod
    async def remove_history(self, channel: str) -> None:
        """Forget what the channel has kept, and give it a new epoch. Nodes learn it with the next publication
        or the next check."""
