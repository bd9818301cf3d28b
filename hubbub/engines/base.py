"""What an engine is: the place where a hub's publications meet, whichever process they come from."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import Position, Publication

logger = logging.getLogger("hubbub.engines")

#: Seconds in which a second publication with the same idempotency key is taken for the first.
IDEMPOTENCY_WINDOW = 300.0


class Top(NamedTuple):
    """Where a channel stands, and which publication stands there.

    :param position: of the newest publication; ``START`` if the channel has no history.
    :param id: of that publication; empty if the engine does not have it any more, or there never was one. An
        engine that was set back to an earlier state keeps its epoch and gives out offsets a second time: the
        id tells the two apart.
    """

    position: Position
    id: str = ""


class PresenceChange(NamedTuple):
    """Somebody comes to a channel, or leaves it.

    :param channel: the channel's name.
    :param connection: the id of the connection.
    :param data: what is told about it to those who ask; ``None`` if it leaves.
    """

    channel: str
    connection: str
    data: bytes | None


class Diagnosis(NamedTuple):
    """Something that ``hubbub doctor`` says about a server.

    :param is_ok: whether it is as it should be.
    :param text: what was found.
    :param advice: what to do about it; empty if nothing is to be done.
    """

    is_ok: bool
    text: str
    advice: str = ""


class Sink(Protocol):
    """Where an engine hands over what it gets. Called on the event loop of :meth:`Engine.start`."""

    def on_publication(self, publication: Publication) -> None:
        """Something was published to a channel this node is subscribed to. Engines may hand over a
        publication twice, late, or not at all: with a position, that is noticed."""

    def on_disconnect(self, reason: str) -> None:
        """The engine is away: for now it neither takes publications nor hands any over. It tries to come back
        by itself, and calls :meth:`on_reconnect` when it is. Not called by :meth:`Engine.stop`.

        :param reason: what happened, for people.
        """

    def on_reconnect(self) -> None:
        """The engine was away and is back, all subscriptions included. Whatever was published meanwhile has
        not been handed over."""


def hand_over(sink: Sink, publication: Publication) -> None:
    """Give ``publication`` to ``sink``. The one way in which engines do it.

    What the sink raises is logged, and the publications after it are handed over all the same: an error of
    the application's is never an outage of the engine, and never an error of the publisher's.
    """
    try:
        sink.on_publication(publication)
    except Exception:
        logger.exception("Could not deliver publication %s to %r.", publication.id, publication.channel)


class Engine(ABC):
    """One implementation per URL scheme. ``hubbub.testing.engine_contract`` tests what is promised here.

    Methods raise :class:`~hubbub.exceptions.EngineUnavailable` when the engine cannot be reached, within
    a bounded time. An engine heals its own connections: it tries again by itself, subscribes again, and then
    calls ``sink.on_reconnect``. It never takes publications while it cannot hear any.

    :param url: the URL given to ``Hub``, from which the engine takes what it needs to connect.
    :param namespace: keeps apart what shares a server; prefixed to every name the engine uses there.
    """

    #: Whether hubs in different processes that use the same URL reach one another.
    across_processes: ClassVar[bool]

    #: Whether the URL says that there are no other processes to reach, or that they are of no interest.
    is_alone = False

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
    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        """Hand over what is published to ``channel`` from now on; with ``history``, the channel has one from
        now on. Returns where it stands: everything after that is handed over, or ``on_reconnect`` is called.

        Called again for a channel that is subscribed to already, it declares the history again, which an
        engine that has lost its data needs.
        """

    @abstractmethod
    async def unsubscribe(self, channel: str) -> None:
        """Hand over nothing more of ``channel``."""

    @abstractmethod
    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        """What the channel has kept, as one consistent picture.

        :param since: only what comes after this position (before it, if ``reverse``). If it is of another
            epoch than the channel, there are no publications, and the page's position tells. ``START`` is
            of every epoch.
        :param limit: publications at the most; 0 asks for the position alone.
        :param reverse: the newest first.
        """

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        """Where each of ``channels`` stands, in the order of ``channels``, without changing anything.

        Nodes ask it of all their channels regularly, so engines answer it for many channels at once, without
        reading payloads. This one is for engines that cannot.
        """
        pages = await asyncio.gather(*(self.history(channel, None, 1, True) for channel in channels))
        return [
            Top(
                page.position,
                page.publications[0].id
                if page.publications and page.publications[0].position == page.position
                else "",
            )
            for page in pages
        ]

    @abstractmethod
    async def remove_history(self, channel: str) -> None:
        """Forget what the channel has kept, and give it a new epoch. Nodes learn it with the next publication
        or the next check."""

    async def renew_epoch(self, channel: str, epoch: str) -> None:
        """Give the channel a new epoch, unless it has another than ``epoch`` by now. What it has kept may be
        forgotten.

        Asked for by a node that has found the server set back to an earlier state of the epoch, from which on
        it gives out offsets a second time.
        """
        page = await self.history(channel, limit=0)
        if page.position.epoch == epoch:
            await self.remove_history(channel)

    # Presence: who is in a channel, kept where all nodes can read it. What a node enters there, it enters
    # under a *lease*, a name it makes up and renews. When the node is gone, others remove what is under it.

    @abstractmethod
    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        """Renew ``lease``, and enter and remove under it who has come and left, in this order.

        A lease that has lapsed is as good as ever until :meth:`expire_presence` has removed it: who was only
        kept from renewing it, and is early enough, has never been away.

        :param ttl: seconds from now, by the server's clock, until it lapses; 0 ends it.
        :param begin: this is a new lease, which nobody has used.
        :return: ``False`` if the lease is not there (any more): nothing has been done, and what was under it
            is not there either. The node begins a new one, and enters everybody again.
        """

    @abstractmethod
    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        """Remove the leases that lapsed more than ``grace`` seconds ago, with everything under them. Several
        nodes may do so at once, and one may die in the midst of it: another goes on.

        :return: what this call has removed, as changes without data. What was entered again under another
            lease is not among it.
        """

    @abstractmethod
    async def presence(self, channel: str) -> Mapping[str, bytes]:
        """Who is in ``channel``: the data of each connection, under all leases that have not been removed."""

    # For ``hubbub doctor``

    async def inspect(self) -> Sequence[Diagnosis]:
        """What is to be said about the server of a started engine: its version, how durable it is, whether it
        is set up as Hubbub needs it."""
        return ()
