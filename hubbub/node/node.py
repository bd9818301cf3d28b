"""A node: one process's share of a hub, with its connections and the channels that they are in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from threading import RLock
from typing import Any, Protocol

from hubbub.core.counts import Counts
from hubbub.core.forms import Form
from hubbub.core.history import History
from hubbub.core.publication import INTERNAL, START, Position, Publication, publication_ids
from hubbub.core.subscriber import CallbackSubscriber, Subscriber
from hubbub.engines.base import Engine
from hubbub.exceptions import InvalidData
from hubbub.node.clock import Clock, Timer
from hubbub.node.control import (
    CONTROL,
    CONTROL_HISTORY,
    Command,
    Disconnect,
    Forget,
    Recheck,
    decode_command,
    encode_command,
)
from hubbub.node.health import EngineHealth
from hubbub.node.presence import PresenceTracker, decode_entries
from hubbub.node.presence_events import NodePresenceEvents
from hubbub.node.rechecks import Rechecks
from hubbub.node.refusals import Refusals
from hubbub.node.slots import Capacity, Slot, Slots
from hubbub.node.snapshots import Snapshot
from hubbub.node.subscriptions import Subscriptions
from hubbub.protocols.plain import PLAIN
from hubbub.types import Health, JoinLeave, Presence, check_count

logger = logging.getLogger(__name__)

#: Seconds between two checks of all connections.
TICK = 1.0

#: A task that publishes without ever suspending would keep the event loop from delivering anything.
#: After this many bytes for subscribers of this node, and in any case after this many publications, it is
#: suspended for one turn of the loop.
YIELD_AFTER = 65_536
YIELD_COUNT = 256


class Declaration(Protocol):
    """Settings of a declared channel, as far as a node needs them."""

    @property
    def history(self) -> History | None:
        """How many publications the channel keeps, and for how long."""

    @property
    def presence(self) -> bool:
        """Whether connections in the channel are visible in presence."""


class NodeConnection(Protocol):
    """A connection, as far as a node needs it."""

    id: str
    user: str | None

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""

    @property
    def dropped(self) -> int:
        """Messages that the policy dropped because the client was slow."""

    def tick(self, now: float) -> None:
        """Check the connection; called about once a second.

        :param now: seconds by the event loop's clock.
        """

    def end(self, code: int, reason: str) -> None:
        """Begin to close, without waiting."""

    async def recheck(self) -> None:
        """Check the permissions of the client again, and end the connection if it has lost them.

        Connections of an application's own endpoints do nothing.
        """


class Node:
    """One process's share of a hub, from start to stop.

    It is the sink of its engine: the engine calls :meth:`on_publication`, :meth:`on_disconnect` and
    :meth:`on_reconnect`.

    :param engine: where publications are sent to and come from.
    :param find_declaration: returns the declaration of a channel, or ``None`` for an undeclared one.
    :param presence_ttl: seconds after which the connections of a crashed process are removed from presence.
    :param check_history: raises ``InvalidChannel`` for a channel that is not declared with a history.
    :param capacity: how many connections there may be.
    :param clock: by which everything of the node is timed, except its connections, which wait for their
        clients by the event loop's clock; by default that one.
    :param wall_clock: seconds that also pass while the machine sleeps.
    """

    def __init__(
        self,
        engine: Engine,
        find_declaration: Callable[[str], Declaration | None] = lambda name: None,
        presence_ttl: float = 30.0,
        check_history: Callable[[str], None] = lambda name: None,
        *,
        capacity: Capacity | None = None,
        clock: Clock | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._find_declaration = find_declaration
        self._check_history = check_history
        self.loop = asyncio.get_running_loop()
        self._clock: Clock = self.loop if clock is None else clock
        #: Seconds since 1970, for moments that clients and other processes name.
        self.wall_clock = wall_clock
        self._ids = publication_ids()
        self._health = EngineHealth(engine, self._clock)
        #: Connections that were disconnected as slow.
        self.slow_disconnects = 0
        #: Clients and messages that were refused.
        self.refusals = Refusals()
        self._slots = Slots(Capacity() if capacity is None else capacity, self.refusals)
        # Messages dropped for connections that have ended.
        self._dropped = 0
        # Held for moments while a connection is removed: the messages that were dropped for it are either its
        # own or in the sum. Otherwise the count could fall, for a thread that reads it just then. Reentrant,
        # because the garbage collector may end a forgotten connection at any time.
        self._removing = RLock()
        self._counts = Counts()
        # The number of publications by which a publisher is suspended next.
        self._suspend_at = YIELD_COUNT
        # Channels
        self._subscriptions = Subscriptions(engine, self._history_of, self._clock, self._counts)
        self._control = CallbackSubscriber("control", self._on_command, self._on_commands_lost)
        # Presence
        self._presence = PresenceTracker(engine, presence_ttl, self._clock, wall_clock)
        self._events = NodePresenceEvents(engine, self._subscriptions, self._presence, self._clock)
        # Connections
        self._connections: dict[str, NodeConnection] = {}
        self._has_no_connections = asyncio.Event()
        self._has_no_connections.set()
        # Tasks that have left the block of their connection, and are still running.
        self._handlers: set[asyncio.Task[Any]] = set()
        #: Checks the permissions of clients again, when they have changed.
        self.rechecks = Rechecks(self._clock)
        # Set when the node stops: code and reason for all connections, also for those that are opened
        # meanwhile.
        self._ending: tuple[int, str] | None = None
        self._ticker: Timer | None = None

    # Lifecycle

    async def start(self, *, has_presence: bool = False) -> None:
        """Start the engine, and listen for commands of other nodes.

        :param has_presence: whether there are channels with presence. Then this node removes the connections
            of crashed processes, even if it has no connections of its own in such a channel.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        await self._engine.start(self)
        try:
            await self.join(CONTROL, self._control)
        except BaseException:
            try:
                await self._subscriptions.stop()
            finally:
                await self._engine.stop()
            raise
        if has_presence:
            self._presence.start()
        self._ticker = self._clock.call_later(TICK, self._tick)

    async def stop(self, code: int, reason: str, timeout: float) -> None:
        """Close all connections, wait for their handlers, and stop the engine.

        A task that is cancelled here waits no longer, and still stops the engine.

        :param code: the close code for all connections.
        :param reason: the reason for all connections.
        :param timeout: seconds to wait until connections have ended and handlers have returned.
        """
        self._ending = (code, reason)
        async with AsyncExitStack() as stack:
            # Called in the opposite order; each of them, even if another one raises.
            stack.push_async_callback(self._engine.stop)
            stack.push_async_callback(self._subscriptions.stop)
            stack.callback(self._events.close)
            stack.push_async_callback(self._presence.stop)
            stack.callback(self._stop_ticker)
            for connection in list(self._connections.values()):
                connection.end(code, reason)
            try:
                async with asyncio.timeout(timeout):
                    await self.rechecks.stop()
                    await self._has_no_connections.wait()
                    await self._handlers_returned()
            except TimeoutError:
                logger.warning(
                    "%d connections and %d handlers did not end within %g s; stopping without them.",
                    len(self._connections),
                    len(self._handlers),
                    timeout,
                )

    async def _handlers_returned(self) -> None:
        # A handler often publishes after the block of its connection, as the last thing that it does.
        handlers = self._handlers - {asyncio.current_task()}
        if handlers:
            await asyncio.wait(handlers)

    def _stop_ticker(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()

    # Health

    def stats(self) -> dict[str, Any]:
        """Return the fields of :class:`hubbub.Stats`.

        Any thread may call this, without waiting for the event loop: exporters of metrics have threads of
        their own, which the loop may be waiting for.
        """
        with self._removing:
            connections, dropped = list(self._connections.values()), self._dropped
        feeds = [feed for feed in self._subscriptions if not feed.channel.startswith(INTERNAL)]
        return {
            "connections": len(connections),
            "subscriptions": sum(map(len, feeds)),
            "channels": len(feeds),
            "backlog": sum(connection.backlog for connection in connections),
            "dropped": dropped + sum(connection.dropped for connection in connections),
            "slow_disconnects": self.slow_disconnects,
            "engine_outages": self._health.outages,
            "engine_outage_seconds": self._health.outage_seconds,
            "refused": self.refusals.counts(),
            "all_outage_seconds": self._health.all_outage_seconds,
            **{name: getattr(self._counts, name) for name in Counts.__slots__},
        }

    async def health(self, timeout: float) -> Health:
        """Ask the engine whether it answers and accepts publications.

        :param timeout: seconds that the engine has for its answer.
        """
        return await self._health.check(timeout, lambda: self._presence.error)

    # Connections

    def admit(self) -> Slot:
        """Take a slot for a client that wants to connect, before anything is awaited for it.

        It has to be released in the end, also if the client is refused.

        :raises HTTPException: the process has as many connections as it may have (503).
        """
        return self._slots.take()

    def add(self, connection: NodeConnection) -> None:
        """Hold ``connection`` until it is removed; end it at once if the node is stopping."""
        self._connections[connection.id] = connection
        self._has_no_connections.clear()
        if self._ending is not None:
            connection.end(*self._ending)

    def remove(self, connection: NodeConnection) -> None:
        """Hold ``connection`` no longer. The task that calls this is its handler: a stop waits for it."""
        with self._removing:
            is_removed = self._connections.pop(connection.id, None) is not None
            if is_removed:
                self._dropped += connection.dropped
        if is_removed:
            self.rechecks.forget(connection)
            handler = asyncio.current_task()
            if handler is not None and handler not in self._handlers:
                self._handlers.add(handler)
                handler.add_done_callback(self._handlers.discard)
        if not self._connections:
            self._has_no_connections.set()

    # Channels

    async def join(
        self,
        channel: str,
        subscriber: Subscriber,
        since: Position | None = None,
        history: int = 0,
        form: Form = PLAIN,
        *,
        snapshot: Snapshot | None = None,
        entry: bytes | None = None,
        join_leave: JoinLeave | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Position:
        """Add ``subscriber`` to ``channel``: first to its presence, then to its publications.

        This is the one place for that order: when the subscriber gets its first live publication, all other
        nodes can see it. If any of it fails, or the task is cancelled, the subscriber is in neither. A
        subscriber must not join a channel twice at the same time.

        :param since: the position from which it resumes; missed publications are written first.
        :param history: instead, how many of the last publications are written first.
        :param form: how publications are written to it.
        :param snapshot: reads the state with which it begins, unless ``since`` is recovered. The channel has
            a history, ``history`` is 0, and the form reports the start.
        :param entry: its presence entry, from :func:`hubbub.node.presence.encode_entry`.
        :param join_leave: the presence events that it gets.
        :param is_wanted: returns whether it is still to be added. If not, once it is its turn to join or has
            joined, it is removed again.
        :return: the position up to which everything has been written to the subscriber.
        :raises Unrecoverable: the history does not reach back to ``since``, and the form cannot say so.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        position = START
        try:
            if entry is not None:
                await self._track(channel, subscriber.id, entry)
            if join_leave is not None:
                await self._events.open(channel, subscriber)
            if is_wanted():
                position = await self._subscriptions.join(
                    channel, subscriber, since, history, form, snapshot=snapshot
                )
            # Nothing is awaited from here on: the next publication may come in the next turn of the loop.
            if not is_wanted():
                self.leave(channel, subscriber)
            elif join_leave is not None:
                self._events.add(channel, subscriber, join_leave, form)
        except BaseException:
            self.leave(channel, subscriber)
            raise
        return position

    def leave(self, channel: str, subscriber: Subscriber) -> None:
        """Remove ``subscriber`` from ``channel``: its publications, its presence, its presence events."""
        self._subscriptions.leave(channel, subscriber)
        self._presence.untrack(channel, subscriber.id)
        self._events.remove(channel, subscriber)

    def position(self, channel: str) -> Position:
        """See :meth:`hubbub.node.subscriptions.Subscriptions.position`."""
        return self._subscriptions.position(channel)

    def check_history(self, channel: str, since: object, history: int, *, has_positions: bool) -> None:
        """Check the history that a connection asks for when it subscribes to ``channel``.

        :param since: the position from which it resumes, or ``None``.
        :param history: how many of the last publications it asks for.
        :param has_positions: whether the client is notified if it cannot resume. Then it may ask anywhere.
        :raises InvalidChannel: it asks for history, and the channel is not declared with one.
        :raises TypeError: ``history`` is not an ``int``.
        :raises ValueError: ``history`` is negative.
        """
        check_count("history", history, least=0)
        if history or (since is not None and not has_positions):
            self._check_history(channel)

    def _history_of(self, channel: str) -> History | None:
        if channel == CONTROL:
            return CONTROL_HISTORY
        declaration = self._find_declaration(channel)
        return None if declaration is None else declaration.history

    # Presence

    def has_presence(self, channel: str) -> bool:
        """Return whether ``channel`` is declared with presence."""
        declaration = self._find_declaration(channel)
        return declaration is not None and declaration.presence

    async def presence(self, channel: str) -> Presence:
        """Read the presence entries of ``channel`` in all processes.

        :raises EngineUnavailable: the engine cannot be reached.
        """
        self._presence.start()
        entries = decode_entries(channel, await self._engine.presence(channel))
        return Presence(sorted(entries.values(), key=lambda entry: (entry.user or "", entry.connection)))

    async def _track(self, channel: str, connection: str, data: bytes) -> None:
        # The diff is on its way to this node too; but a subscriber that joins is to find itself in the
        # presence that it is sent. If it has left meanwhile, the diff of that may have come already, and
        # would not come again.
        if await self._presence.track(channel, connection, data):
            self._events.apply_join(channel, connection, data)

    # Publishing

    async def publish(
        self, publication: Publication, idempotency_key: str | None = None, using: object = None
    ) -> Position:
        """Publish; see :meth:`hubbub.Hub.publish`."""
        history = self._history_of(publication.channel)
        counts = self._counts
        if using is not None:
            position = await self._engine.publish_in(publication, history, idempotency_key, using)
            counts.published += 1
            return position
        position = await self._health.publish(publication, history, idempotency_key)
        counts.published += 1
        if self._subscriptions.collected > YIELD_AFTER or counts.published >= self._suspend_at:
            self._suspend_at = counts.published + YIELD_COUNT
            await asyncio.sleep(0)
        return position

    def flush(self) -> None:
        """Deliver the publications of this turn of the event loop now, before a message to one client."""
        self._subscriptions.flush()

    async def remove_history(self, channel: str) -> None:
        """Remove the history of ``channel``.

        When this returns, no client of this node can resume from it. On other nodes this is so as soon as
        they have received the command.

        :raises EngineUnavailable: the engine cannot be reached. The history may have been removed all the
            same.
        """
        try:
            await self._engine.remove_history(channel)
        finally:
            # Also if the answer was lost, or the task was cancelled.
            self._subscriptions.forget(channel)
        await self.command(Forget(channel))

    # The sink of the engine

    def on_publication(self, publication: Publication) -> None:
        self._subscriptions.publish(publication)

    def on_disconnect(self, reason: str) -> None:
        self._health.lost(reason)
        self._presence.notice_outage()

    def on_reconnect(self) -> None:
        self._health.reconnected()
        self._presence.notice_outage()
        # Publications and diffs of the outage were missed, and the engine may have lost or set back its data.
        self._subscriptions.verify()
        self._events.sync()

    # Commands

    async def command(self, command: Command) -> None:
        """Send ``command`` to every node, this one included.

        :raises EngineUnavailable: the engine cannot be reached.
        """
        packed = encode_command(command)
        await self._health.publish(
            Publication(CONTROL, packed, "binary", id=next(self._ids)), CONTROL_HISTORY
        )

    def _on_command(self, packed: bytes) -> None:
        try:
            command = decode_command(packed)
        except InvalidData as exc:
            # From a newer version, during an upgrade.
            logger.warning("Ignored a command from another node: %s", exc)
            return
        match command:
            case Disconnect():
                self._disconnect(command)
            case Forget(channel):
                self._subscriptions.forget(channel)
            case Recheck(user):
                connections = self._connections.values()
                self.rechecks.carry_out([connection for connection in connections if connection.user == user])

    def _disconnect(self, command: Disconnect) -> None:
        for connection in list(self._connections.values()):
            if connection.id == command.connection or (
                command.user is not None and connection.user == command.user
            ):
                connection.end(command.code, command.reason)

    def _on_commands_lost(self) -> None:
        logger.warning("The engine has lost commands between nodes, such as to disconnect or recheck a user.")

    # Internal

    def _tick(self) -> None:
        self._ticker = self._clock.call_later(TICK, self._tick)
        # Transports time their writes by the event loop, also where the node has another clock.
        now = self.loop.time()
        for connection in list(self._connections.values()):
            connection.tick(now)
        now = self._clock.time()
        self._subscriptions.tick(now)
        self._events.tick(now)
