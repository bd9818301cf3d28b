"""The engine: where the publications of all processes of a hub meet.

An :class:`Engine` has two duties, which the node uses apart: :class:`StreamEngine` carries publications and
keeps the histories of channels; :class:`PresenceEngine` keeps which connections are in which channel. The
engine reports to a :class:`Sink`, which is the node. ``hubbub.testing.engine_contract`` tests all of it.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple, ParamSpec, Protocol, TypeVar

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import Position, Publication
from hubbub.engines.diagnostics import Diagnosis
from hubbub.exceptions import HubNotRunning

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_P = ParamSpec("_P")

#: Seconds within which a connection to a server must be established.
CONNECT_TIMEOUT = 5.0

#: Seconds until a call of an engine must have an answer. Then it raises :class:`EngineUnavailable`.
ANSWER_TIMEOUT = 5.0

#: Seconds within which a second publication with the same idempotency key is taken for the first.
IDEMPOTENCY_WINDOW = 300.0

#: Seconds that a stream is remembered after its last publication has expired. After that it has a new epoch.
STREAM_TTL = 3600.0


class Top(NamedTuple):
    """The end of a channel's stream, and the publication there.

    :param position: the position of the newest publication; ``START`` if the channel has no history.
    :param id: the id of that publication; empty if the engine does not have it any more, or there never was
        one. An engine that was set back to an earlier state keeps its epoch and gives out offsets a second
        time: the id distinguishes the two publications of one position.
    """

    position: Position
    id: str = ""


class PresenceChange(NamedTuple):
    """A connection enters a channel's presence, or leaves it.

    :param channel: the channel's name.
    :param connection: the id of the connection.
    :param data: the presence entry as bytes; ``None`` if the connection leaves.
    """

    channel: str
    connection: str
    data: bytes | None


class Sink(Protocol):
    """The receiver of an engine's publications and outages. Called on the event loop of :meth:`Engine.start`.

    Exceptions of these methods are logged, and have no other effect on the engine.
    """

    def on_publication(self, publication: Publication) -> None:
        """Receive a publication to a channel that is subscribed to.

        Engines may deliver a publication twice, late, or not at all: the position shows it, where there is
        one.
        """

    def on_disconnect(self, reason: str) -> None:
        """Note that an outage has begun: the engine neither accepts nor delivers publications.

        The engine reconnects by itself, and calls :meth:`on_reconnect` then. Not called because of
        :meth:`Engine.stop`.

        :param reason: the reason, as a sentence for people.
        """

    def on_reconnect(self) -> None:
        """Note that the outage is over, and all channels are subscribed to again.

        Publications of the meantime have not been delivered. Engines also call it without an outage, when
        they find out that they may have missed publications.
        """


def hand_over(sink: Sink, publication: Publication) -> None:
    """Deliver ``publication`` to ``sink``; the one way in which engines do it.

    An exception of the sink is logged, and the next publications are delivered all the same: an error of
    the application is never an outage of the engine, and never an error of the publisher.
    """
    try:
        sink.on_publication(publication)
    except Exception:
        logger.exception("Could not deliver publication %s to %r.", publication.id, publication.channel)


def notify(callback: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> None:
    """Call a method of a sink about an outage; the one way in which engines do it.

    An exception is logged: the engine reconnects all the same.
    """
    try:
        callback(*args, **kwargs)
    except Exception:
        logger.exception("Could not notify the node of an outage of the engine, or of its end.")


def batched(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """Cut ``items`` into pieces of ``size``; the last may be smaller."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class StreamEngine(ABC):
    """The duty of an engine to carry publications, and to keep the histories of channels."""

    @abstractmethod
    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        """Accept ``publication``, in one order per channel, and announce it to every subscribed node.

        With ``history`` it gets the next offset and is kept; both happen, or neither, and publications are
        announced in the order of their offsets. A channel that has a history keeps it: without ``history``,
        the one that was declared last applies. Only in channels that never had a history is a publication
        not kept; its position is ``START``.

        :param idempotency_key: a second publication to this channel with the same key, within
            ``IDEMPOTENCY_WINDOW`` seconds, is not published, and the position of the first is returned.
        :return: its position, once it is accepted.
        """

    async def publish_in(
        self, publication: Publication, history: History | None, idempotency_key: str | None, using: object
    ) -> Position:
        """Publish as a part of a transaction: with its commit, and never without.

        Until the commit the position is not final.

        :param using: a connection to a database, which is in the transaction.
        :raises TypeError: the engine cannot publish with ``using``. Most engines have no transactions.
        """
        raise TypeError(
            "Expected an engine that takes part in transactions ('postgresql://') for 'using', but got "
            f"{type(self).__name__}. Use 'postgresql://', or publish without 'using' after the commit."
        )

    @abstractmethod
    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        """Deliver the publications to ``channel`` from now on.

        Called again for a channel that is subscribed to already, it declares the history again, which an
        engine that has lost its data needs.

        :param history: the history that the channel has from now on.
        :return: the end of the channel's stream. All publications after it are delivered, or
            ``on_reconnect`` is called.
        """

    @abstractmethod
    async def unsubscribe(self, channel: str) -> None:
        """Deliver no more publications to ``channel``."""

    @abstractmethod
    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        """Read the publications that the channel has kept, as one consistent picture.

        :param since: read only publications after this position (before it, if ``reverse``). If it is of
            another epoch than the channel, the page has no publications, and its position shows the
            channel's epoch. ``START`` is of every epoch.
        :param limit: the most publications to read; 0 asks for the position alone.
        :param reverse: read the newest first.
        """

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        """Read the ends of the streams of ``channels``, in the order of ``channels``, without changing any.

        Nodes call it for all their channels regularly, so engines answer it for many channels at once,
        without reading payloads. This implementation is for engines that cannot.
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
        """Remove the publications that the channel has kept, and give it a new epoch.

        Nodes notice it with the next publication or the next check.
        """

    async def renew_epoch(self, channel: str, epoch: str) -> None:
        """Give the channel a new epoch, unless it has another than ``epoch`` already.

        Called by a node that has found the server set back to an earlier state of the epoch, from which on
        it gives out offsets a second time. Publications that the channel has kept may be removed.
        """
        page = await self.history(channel, limit=0)
        if page.position.epoch == epoch:
            await self.remove_history(channel)


class PresenceEngine(ABC):
    """The duty of an engine to keep which connections are in which channel, for all nodes to read.

    A node makes its entries under a *lease*, a name that it makes up and renews. When the node has crashed,
    other nodes remove the lapsed lease with all its entries.
    """

    @abstractmethod
    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        """Renew ``lease``, and make ``changes`` under it, in this order.

        A lease that has lapsed can be renewed until :meth:`expire_presence` has removed it: a node that could
        not renew its lease for a while, and is early enough, has never left presence.

        :param ttl: seconds from now, by the server's clock, until the lease lapses; 0 ends it.
        :param begin: this is a new lease, which was never used.
        :return: ``False`` if the lease does not exist (any more): nothing has been done, and its entries do
            not exist either. The node begins a new lease and enters all its connections again.
        """

    @abstractmethod
    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        """Remove the leases that lapsed more than ``grace`` seconds ago, with all their entries.

        Several nodes may do so at once, and one of them may crash meanwhile: another completes the removal.

        :return: the entries that this call has removed, as changes without data. Entries that were made again
            under another lease are not among them.
        """

    @abstractmethod
    async def presence(self, channel: str) -> Mapping[str, bytes]:
        """Read the entries of ``channel`` by connection id, under all leases that have not been removed."""


class Engine(StreamEngine, PresenceEngine):
    """An engine; one implementation for each kind of URL.

    Methods raise :class:`~hubbub.exceptions.EngineUnavailable` when the server cannot be reached, within a
    bounded time, and :class:`~hubbub.exceptions.HubNotRunning` before :meth:`start` and after :meth:`stop`.
    An engine reconnects by itself, subscribes again, and then calls ``sink.on_reconnect``. It never accepts
    publications while it cannot receive any.

    :param url: the URL given to ``Hub``, with all that the engine needs to connect.
    :param namespace: separates hubs that share a server; prefixed to every name that the engine uses there.
    """

    #: Whether hubs in different processes that use the same URL reach one another.
    across_processes: ClassVar[bool]

    #: Whether the URL says that there are no other processes to reach, or that they are of no interest.
    is_alone = False

    # Set by start(), and None after stop(). Subclasses read it with _started().
    _sink: Sink | None = None

    def __init__(self, url: str, namespace: str = "hubbub") -> None:
        self.url = url
        self.namespace = namespace

    @abstractmethod
    async def start(self, sink: Sink) -> None:
        """Connect, and deliver to ``sink`` from now on.

        :raises EngineUnavailable: there is no server at the URL.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Deliver nothing more, and release all resources. An engine can be started again."""

    async def inspect(self) -> Sequence[Diagnosis]:
        """Examine the server of a started engine, for ``hubbub doctor``.

        Diagnoses are about its version, how durable it is, and whether it is set up as Hubbub needs it.
        """
        return ()

    def _started(self) -> Sink:
        """Return the sink.

        :raises HubNotRunning: the engine has not been started, or has been stopped.
        """
        if self._sink is None:
            raise HubNotRunning(f"{type(self).__name__} has not been started, or has been stopped.")
        return self._sink
