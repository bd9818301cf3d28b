"""A node: one process's share of a hub. Its connections, and all that they need."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

from hubbub.core.forms import Form
from hubbub.core.history import History
from hubbub.core.publication import INTERNAL, Position, Publication, publication_ids
from hubbub.core.rotation import Rotation
from hubbub.core.subscriber import CallbackSubscriber, Subscriber
from hubbub.engines.base import Engine
from hubbub.exceptions import EngineUnavailable, InvalidData
from hubbub.node.control import (
    CONTROL,
    CONTROL_HISTORY,
    Command,
    Disconnect,
    Forget,
    decode_command,
    encode_command,
)
from hubbub.node.presence import PresenceTracker, decode_member, decode_members
from hubbub.node.presence_events import PresenceEvents
from hubbub.node.subscriptions import Subscriptions
from hubbub.protocols.plain import PLAIN
from hubbub.types import Health, JoinLeave, Presence, check_count

logger = logging.getLogger("hubbub.node.node")

#: Seconds between two looks at all connections.
TICK = 1.0

#: A publisher that never waits for anything would keep the loop from ever flushing what it publishes.
#: After this many bytes for clients of this node, and in any case after this many publications, it is made to
#: give way for one turn.
YIELD_AFTER = 65_536
YIELD_COUNT = 256

#: Seconds between two looks of a watch at what the engine has.
LOOK = 30.0


#: Where a health check writes, and bytes that it writes at the most.
HEALTH = f"{INTERNAL}health"
HEALTH_HISTORY = History(size=1, ttl=60)
MAX_HEALTH_WRITE = 65_536


class FailedWrite(NamedTuple):
    """A publication that the engine did not accept.

    :param reason: why, for people.
    :param size: bytes of its payload.
    """

    reason: str
    size: int


class Declaration(Protocol):
    """Settings of a declared channel, as far as a node needs them."""

    @property
    def history(self) -> History | None:
        """How many publications the channel keeps, and for how long."""

    @property
    def presence(self) -> bool:
        """Whether connections in the channel are visible in presence."""


class NodeConnection(Protocol):
    """What a node asks of the connections it holds."""

    id: str
    user: str | None

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""

    @property
    def dropped(self) -> int:
        """Messages that the policy dropped because the client was slow."""

    def tick(self, now: float) -> None:
        """Called about once a second, with the event loop's time in seconds."""

    def end(self, code: int, reason: str) -> None:
        """Begin to close, without waiting."""


class Node:
    """One process's share of a hub, from start to stop.

    :param engine: where publications are sent to and come from.
    :param channel_of: what a channel is declared as, if it is declared.
    :param presence_ttl: seconds within which those of a killed process are to have left.
    :param check_history: raises ``InvalidChannel`` for a channel that is not declared with a history.
    """

    def __init__(
        self,
        engine: Engine,
        channel_of: Callable[[str], Declaration | None] = lambda name: None,
        presence_ttl: float = 30.0,
        check_history: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._engine = engine
        self._channel_of = channel_of
        self._check_history = check_history
        self.loop = asyncio.get_running_loop()
        #: Clients let go because they did not keep up.
        self.slow_disconnects = 0
        # Messages dropped for connections that have ended since.
        self._dropped = 0
        self._subscriptions = Subscriptions(engine, self._history_of)
        self._attendance = PresenceTracker(engine, presence_ttl)
        self._watches: dict[str, PresenceEvents] = {}
        self._looks: Rotation[str] = Rotation()
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._control = CallbackSubscriber("control", self._on_command, self._on_commands_lost)
        self._ids = publication_ids()
        # Publications since the last time that a publisher was made to give way.
        self._published = 0
        # Since when the engine is away, why, and how often it has been.
        self._away_since: float | None = None
        self._trouble = ""
        self._outages = 0
        # What the engine refused last, if it has accepted nothing since.
        self._failed_write: FailedWrite | None = None
        self._connections: dict[str, NodeConnection] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        # Tasks that have had a connection and go on without it.
        self._handlers: set[asyncio.Task[Any]] = set()
        # Set when the node stops: what clients are told, also those that come in meanwhile.
        self._ending: tuple[int, str] | None = None
        self._ticker: asyncio.TimerHandle | None = None

    async def start(self, *, keeps_presence: bool = False) -> None:
        """
        :param keeps_presence: whether there are channels with presence, so that this node looks after what a
            killed process leaves behind, even if it has nobody of its own there.
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
        if keeps_presence:
            self._attendance.start()
        self._ticker = self.loop.call_later(TICK, self._tick)

    async def stop(self, code: int, reason: str, timeout: float) -> None:
        """Close what is still connected, wait at most ``timeout`` seconds until that has ended and the
        handlers have returned, and stop the engine. Cancelled, it stops waiting and stops the engine all the
        same."""
        self._ending = (code, reason)
        async with AsyncExitStack() as stack:
            # In the opposite order; each of them, whatever becomes of the others.
            stack.push_async_callback(self._engine.stop)
            stack.push_async_callback(self._subscriptions.stop)
            stack.callback(self._close_watches)
            stack.push_async_callback(self._attendance.stop)
            stack.callback(self._stop_ticker)
            for connection in list(self._connections.values()):
                connection.end(code, reason)
            try:
                async with asyncio.timeout(timeout):
                    await self._empty.wait()
                    await self._handlers_returned()
            except TimeoutError:
                logger.warning(
                    "%d connections and %d handlers did not end within %g s.",
                    len(self._connections),
                    len(self._handlers),
                    timeout,
                )

    async def _handlers_returned(self) -> None:
        # The last thing that a handler does is often to publish, behind the block of its connection.
        handlers = self._handlers - {asyncio.current_task()}
        if handlers:
            await asyncio.wait(handlers)

    def _close_watches(self) -> None:
        for watch in self._watches.values():
            watch.close()

    def _stop_ticker(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()

    def stats(self) -> dict[str, Any]:
        connections = self._connections.values()
        feeds = [feed for feed in self._subscriptions if not feed.channel.startswith(INTERNAL)]
        return {
            "connections": len(connections),
            "subscriptions": sum(map(len, feeds)),
            "channels": len(feeds),
            "backlog": sum(connection.backlog for connection in connections),
            "dropped": self._dropped + sum(connection.dropped for connection in connections),
            "slow_disconnects": self.slow_disconnects,
            "engine_outages": self._outages,
            "engine_outage_seconds": self._away,
        }

    async def health(self, timeout: float) -> Health:
        """Ask the engine, for at most ``timeout`` seconds, whether it answers and takes what is published."""
        asked = self.loop.time()
        trouble = ""
        try:
            async with asyncio.timeout(timeout):
                await self._engine.history(CONTROL, limit=0)
                if self._failed_write is not None:
                    await self._write_again(self._failed_write)
        except TimeoutError:
            trouble = self._trouble or f"Expected the engine to answer within {timeout:g} s, but it did not."
        except EngineUnavailable as exc:
            trouble = str(exc)
        trouble = trouble or self._attendance.trouble
        return Health(not trouble, self.loop.time() - asked, self._away, trouble)

    async def _write_again(self, failed: FailedWrite) -> None:
        """Write as much as what has failed. Otherwise, a hub that a load balancer has taken out, and that
        publishes nothing therefore, would never be found well again."""
        payload = bytes(min(failed.size, MAX_HEALTH_WRITE))
        await self._write(Publication(HEALTH, payload, "binary", id=next(self._ids)), HEALTH_HISTORY)

    @property
    def _away(self) -> float:
        """Seconds for which the engine has been away; 0 if it is there."""
        return 0.0 if self._away_since is None else self.loop.time() - self._away_since

    # Connections

    def add(self, connection: NodeConnection) -> None:
        self._connections[connection.id] = connection
        self._empty.clear()
        if self._ending is not None:
            connection.end(*self._ending)

    def remove(self, connection: NodeConnection) -> None:
        if self._connections.pop(connection.id, None) is not None:
            self._dropped += connection.dropped
            handler = asyncio.current_task()
            if handler is not None and handler not in self._handlers:
                self._handlers.add(handler)
                handler.add_done_callback(self._handlers.discard)
        if not self._connections:
            self._empty.set()

    # Channels

    async def join(
        self,
        channel: str,
        member: Subscriber,
        since: Position | None = None,
        history: int = 0,
        form: Form = PLAIN,
    ) -> Position:
        """See :meth:`hubbub.node.subscriptions.Subscriptions.join`."""
        return await self._subscriptions.join(channel, member, since, history, form)

    def leave(self, channel: str, member: Subscriber) -> None:
        self._subscriptions.leave(channel, member)
        self._attendance.leave(channel, member.id)
        if (watch := self._watches.get(channel)) is not None:
            watch.remove(member)

    def has_presence(self, channel: str) -> bool:
        declared = self._channel_of(channel)
        return declared is not None and declared.presence

    async def enter(self, channel: str, connection: str, data: bytes) -> None:
        """Let it be known that a member of ``channel``, which has presence, is there.

        :param data: from :func:`hubbub.node.presence.encode_member`.
        """
        is_there = await self._attendance.enter(channel, connection, data)
        # The news is on its way to this node too; but who comes is to find itself there. If it has left
        # meanwhile, the news of that may have been here already, and would not come again.
        if is_there and (watch := self._watches.get(channel)) is not None:
            watch.tell(connection, decode_member(data))

    async def open_watch(self, channel: str, member: Subscriber) -> None:
        """Make ready for :meth:`watch`, which may follow at any time until ``member`` leaves.

        :raises EngineUnavailable: the engine cannot be reached.
        """
        async with self._opening.setdefault(channel, asyncio.Lock()):
            watch = self._watches.get(channel)
            if watch is None:
                watch = PresenceEvents(
                    channel, self._engine, self._subscriptions, lambda: self._attendance.is_settled
                )
                await watch.open()
                self._watches[channel] = watch
                self._looks.add(channel)
        # Nothing is awaited in between: a watch without members is closed.
        watch.expect(member)

    def watch(self, channel: str, member: Subscriber, what: JoinLeave, form: Form) -> None:
        """Send ``member`` the presence of ``channel``, and from now on its joins and leaves."""
        if (watch := self._watches.get(channel)) is not None:
            watch.add(member, what, form)

    async def presence(self, channel: str) -> Presence:
        """
        :raises EngineUnavailable: the engine cannot be reached.
        """
        self._attendance.start()
        members = decode_members(channel, await self._engine.presence(channel))
        return Presence(sorted(members.values(), key=lambda member: (member.user or "", member.connection)))

    def position(self, channel: str) -> Position:
        """See :meth:`hubbub.node.subscriptions.Subscriptions.position`."""
        return self._subscriptions.position(channel)

    def check_history(self, channel: str, since: object, history: int, *, tells: bool) -> None:
        """Check what a connection asks for when it subscribes to ``channel``.

        :param since: what it wants to go on from, or ``None``.
        :param history: how many of the last publications it wants.
        :param tells: whether the client is told that it cannot go on from there.
        :raises InvalidChannel: the channel is not declared with a history, and it asks for some of it.
        :raises TypeError: ``history`` is no ``int``.
        :raises ValueError: ``history`` is negative.
        """
        check_count("history", history, least=0)
        if history or (since is not None and not tells):
            self._check_history(channel)

    def _history_of(self, channel: str) -> History | None:
        if channel == CONTROL:
            return CONTROL_HISTORY
        declared = self._channel_of(channel)
        return None if declared is None else declared.history

    # Publications

    async def publish(
        self, publication: Publication, idempotency_key: str | None = None, using: object = None
    ) -> Position:
        history = self._history_of(publication.channel)
        if using is not None:
            return await self._engine.publish_in(publication, history, idempotency_key, using)
        position = await self._write(publication, history, idempotency_key)
        self._published += 1
        if self._subscriptions.collected > YIELD_AFTER or self._published >= YIELD_COUNT:
            self._published = 0
            await asyncio.sleep(0)
        return position

    async def _write(
        self, publication: Publication, history: History | None, idempotency_key: str | None = None
    ) -> Position:
        """Publish, and remember for health checks if the engine does not accept it."""
        try:
            position = await self._engine.publish(publication, history, idempotency_key)
        except EngineUnavailable as exc:
            self._failed_write = FailedWrite(str(exc), len(publication.data))
            raise
        self._failed_write = None
        return position

    async def remove_history(self, channel: str) -> None:
        """Forget what ``channel`` has kept. Clients of this node that come back find nothing of it when this
        returns, and those of other nodes as soon as they have been told.

        :raises EngineUnavailable: the engine cannot be reached. It may have been removed all the same.
        """
        try:
            await self._engine.remove_history(channel)
        finally:
            # Also if the answer is lost, or not waited for.
            self._subscriptions.forget(channel)
        await self.command(Forget(channel))

    # For the engine

    def on_publication(self, publication: Publication) -> None:
        self._subscriptions.publish(publication)

    def on_disconnect(self, reason: str) -> None:
        self._outages += 1
        self._away_since = self.loop.time()
        self._trouble = reason
        self._attendance.has_trouble()

    def on_reconnect(self) -> None:
        self._away_since = None
        self._trouble = ""
        self._attendance.has_trouble()
        # Whatever there is here: the engine may have more, or other.
        self._subscriptions.verify()
        for watch in self._watches.values():
            watch.look()

    # Commands

    async def command(self, command: Command) -> None:
        """Have every node, this one too, carry out ``command``.

        :raises EngineUnavailable: the engine cannot be reached.
        """
        packed = encode_command(command)
        await self._write(Publication(CONTROL, packed, "binary", id=next(self._ids)), CONTROL_HISTORY)

    def _on_command(self, packed: bytes) -> None:
        try:
            command = decode_command(packed)
        except InvalidData as exc:
            # From a newer version, during an upgrade.
            logger.warning("Ignored a command: %s", exc)
            return
        match command:
            case Disconnect():
                self._disconnect(command)
            case Forget(channel):
                self._subscriptions.forget(channel)

    def _disconnect(self, command: Disconnect) -> None:
        for connection in list(self._connections.values()):
            if connection.id == command.connection or (
                command.user is not None and connection.user == command.user
            ):
                connection.end(command.code, command.reason)

    def _on_commands_lost(self) -> None:
        logger.warning("The engine has lost what nodes asked of one another, such as to disconnect a user.")

    # The event loop

    def _tick(self) -> None:
        self._ticker = self.loop.call_later(TICK, self._tick)
        now = self.loop.time()
        for connection in list(self._connections.values()):
            connection.tick(now)
        self._subscriptions.tick(now)
        for channel, watch in list(self._watches.items()):
            if len(watch) == 0:
                del self._watches[channel]
                self._looks.discard(channel)
                watch.close()
        due = self._looks.take(now, LOOK)
        if self._engine.across_processes:
            for channel in due:
                self._watches[channel].look()
