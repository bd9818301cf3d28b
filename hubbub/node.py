"""A node: one process's share of a hub. Its connections, and all that they need."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol
from weakref import WeakValueDictionary

from hubbub.attendance import Attendance, decode_member, decode_members
from hubbub.channels import Channel
from hubbub.control import CONTROL, CONTROL_HISTORY, Disconnect, decode_command, encode_command
from hubbub.core.feed import Member
from hubbub.core.listener import Listener
from hubbub.core.publication import INTERNAL, Position, Publication, publication_ids
from hubbub.engines.base import Engine
from hubbub.exceptions import EngineUnavailable, InvalidData
from hubbub.subscriptions import Subscriptions
from hubbub.types import Health, History, JoinLeave, Presence, check_count
from hubbub.watch import Watch

logger = logging.getLogger("hubbub.node")

#: Seconds between two looks at all connections.
TICK = 1.0

#: A publisher that never waits for anything would keep the loop from ever flushing what it publishes.
#: After this many bytes it is made to give way for one turn.
YIELD_AFTER = 65_536


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
        channel_of: Callable[[str], Channel | None] = lambda name: None,
        presence_ttl: float = 30.0,
        check_history: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._engine = engine
        self._channel_of = channel_of
        self._check_history = check_history
        self.loop = asyncio.get_running_loop()
        #: Clients let go because they did not keep up.
        self.let_go = 0
        # Messages dropped for connections that have ended since.
        self._dropped = 0
        self._subscriptions = Subscriptions(engine, self._history_of)
        self._attendance = Attendance(engine, presence_ttl)
        self._watches: dict[str, Watch] = {}
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._control = Listener("control", self._on_command, self._on_commands_lost)
        self._ids = publication_ids()
        # Since when the engine is away, why, and how often it has been.
        self._away_since: float | None = None
        self._trouble = ""
        self._outages = 0
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
            "let_go": self.let_go,
            "outages": self._outages,
            "away": self._away,
        }

    async def health(self, timeout: float) -> Health:
        """Ask the engine, for at most ``timeout`` seconds, whether it is there."""
        asked = self.loop.time()
        trouble = ""
        try:
            async with asyncio.timeout(timeout):
                await self._engine.history(CONTROL, limit=0)
        except TimeoutError:
            trouble = self._trouble or f"Expected the engine to answer within {timeout:g} s, but it did not."
        except EngineUnavailable as exc:
            trouble = str(exc)
        return Health(not trouble, self.loop.time() - asked, self._away, trouble)

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
        self, channel: str, member: Member, since: Position | None = None, history: int = 0
    ) -> Position:
        """See :meth:`hubbub.subscriptions.Subscriptions.join`."""
        return await self._subscriptions.join(channel, member, since, history)

    def leave(self, channel: str, member: Member) -> None:
        self._subscriptions.leave(channel, member)
        self._attendance.leave(channel, member.id)
        if (watch := self._watches.get(channel)) is not None:
            watch.remove(member)

    def has_presence(self, channel: str) -> bool:
        declared = self._channel_of(channel)
        return declared is not None and declared.presence

    async def enter(self, channel: str, connection: str, data: bytes) -> None:
        """Let it be known that a member of ``channel``, which has presence, is there.

        :param data: from :func:`hubbub.attendance.encode_member`.
        """
        await self._attendance.enter(channel, connection, data)
        # The news is on its way to this node too; but who comes is to find itself there.
        if (watch := self._watches.get(channel)) is not None:
            watch.tell(connection, decode_member(data))

    async def watch(self, channel: str, member: Member, what: JoinLeave) -> None:
        """Tell ``member`` who is in ``channel``, and from now on who comes and who leaves.

        :raises EngineUnavailable: the engine cannot be reached.
        """
        async with self._opening.setdefault(channel, asyncio.Lock()):
            watch = self._watches.get(channel)
            if watch is None:
                watch = Watch(channel, self._engine, self._subscriptions, lambda: self._attendance.is_settled)
                await watch.open()
                self._watches[channel] = watch
        # Nothing is awaited in between: one that nobody watches is closed.
        watch.add(member, what)

    async def presence(self, channel: str) -> Presence:
        """
        :raises EngineUnavailable: the engine cannot be reached.
        """
        self._attendance.start()
        members = decode_members(channel, await self._engine.presence(channel))
        return Presence(sorted(members.values(), key=lambda member: (member.user or "", member.connection)))

    def position(self, channel: str) -> Position:
        """Where ``channel``, which has members here, stands."""
        return self._subscriptions.position(channel)

    def check_history(self, channel: str, since: object, history: int) -> None:
        """Check what a connection asks for when it subscribes to ``channel``.

        :param since: what it wants to go on from, or ``None``.
        :param history: how many of the last publications it wants.
        :raises InvalidChannel: the channel is not declared with a history, and it asks for some of it.
        :raises TypeError: ``history`` is no ``int``.
        :raises ValueError: ``history`` is negative, or given together with ``since``.
        """
        check_count("history", history, least=0)
        if since is not None and history:
            raise ValueError("Expected either since=… or history=…, but got both.")
        if since is not None or history:
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
        position = await self._engine.publish(publication, history, idempotency_key)
        if self._subscriptions.collected > YIELD_AFTER:
            await asyncio.sleep(0)
        return position

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
        self._look()

    # Commands

    async def command(self, command: Disconnect) -> None:
        """Have every node, this one too, carry out ``command``.

        :raises EngineUnavailable: the engine cannot be reached.
        """
        packed = encode_command(command)
        await self._engine.publish(
            Publication(CONTROL, packed, "binary", id=next(self._ids)), CONTROL_HISTORY
        )

    def _on_command(self, packed: bytes) -> None:
        try:
            command = decode_command(packed)
        except InvalidData as exc:
            # From a newer version, during an upgrade.
            logger.warning("Ignored a command: %s", exc)
            return
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
        if self._subscriptions.tick(now):
            self._look()
        for channel, watch in list(self._watches.items()):
            if len(watch) == 0:
                del self._watches[channel]
                watch.close()

    def _look(self) -> None:
        for watch in self._watches.values():
            watch.look()
