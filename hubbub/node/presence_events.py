"""Presence events: the joins and leaves of a channel, sent to the subscribers that ask for them.

:class:`NodePresenceEvents` opens and closes the events of all channels of a node, :class:`PresenceEvents` has
those of one channel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import get_args
from weakref import WeakValueDictionary

from hubbub.core.fanout import FanOut
from hubbub.core.forms import Form
from hubbub.core.frames import EventFrame
from hubbub.core.presence import Changes, PresenceState, Users
from hubbub.core.rotation import Rotation
from hubbub.core.subscriber import CallbackSubscriber, Subscriber, deliver
from hubbub.engines.base import Engine
from hubbub.engines.reconnect import Backoff
from hubbub.exceptions import EngineUnavailable, InvalidData
from hubbub.node.clock import Clock, sleep
from hubbub.node.presence import (
    PresenceTracker,
    decode_diff,
    decode_entries,
    decode_entry,
    presence_channel,
)
from hubbub.node.subscriptions import Subscriptions
from hubbub.types import JoinLeave, PresenceEntry

logger = logging.getLogger(__name__)

#: Seconds between two syncs while an engine that has just reconnected may lack entries.
RESYNC_INTERVAL = 1.0

#: Seconds between two reads of a channel's presence entries, against diffs that were lost.
SYNC_INTERVAL = 30.0


class NodePresenceEvents:
    """The presence events of all channels with subscribers on this node that ask for them.

    :param engine: where presence entries are read.
    :param subscriptions: the channels of this node, for the presence channels.
    :param tracker: knows whether the entries in the engine are complete.
    :param clock: by which syncs are timed.
    """

    def __init__(
        self, engine: Engine, subscriptions: Subscriptions, tracker: PresenceTracker, clock: Clock
    ) -> None:
        self._engine = engine
        self._subscriptions = subscriptions
        self._tracker = tracker
        self._clock = clock
        self._events: dict[str, PresenceEvents] = {}
        self._to_sync: Rotation[str] = Rotation()
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        """Close the presence events of all channels."""
        for events in self._events.values():
            events.close()

    async def open(self, channel: str, subscriber: Subscriber) -> None:
        """Prepare for :meth:`add`, which may follow at any time until ``subscriber`` is removed.

        :raises EngineUnavailable: the engine cannot be reached.
        """
        async with self._opening.setdefault(channel, asyncio.Lock()):
            events = self._events.get(channel)
            if events is None:
                events = PresenceEvents(
                    channel, self._engine, self._subscriptions, lambda: self._tracker.is_settled, self._clock
                )
                await events.open()
                self._events[channel] = events
                self._to_sync.add(channel)
        # In the same turn of the loop: presence events without subscribers are closed by the next tick.
        events.expect(subscriber)

    def add(self, channel: str, subscriber: Subscriber, join_leave: JoinLeave, form: Form) -> None:
        """See :meth:`PresenceEvents.add`; after :meth:`open`."""
        if (events := self._events.get(channel)) is not None:
            events.add(subscriber, join_leave, form)

    def remove(self, channel: str, subscriber: Subscriber) -> None:
        """See :meth:`PresenceEvents.remove`."""
        if (events := self._events.get(channel)) is not None:
            events.remove(subscriber)

    def apply_join(self, channel: str, connection: str, data: bytes) -> None:
        """See :meth:`PresenceEvents.apply_join`.

        :param data: the entry, from :func:`hubbub.node.presence.encode_entry`.
        """
        if (events := self._events.get(channel)) is not None:
            events.apply_join(connection, decode_entry(data))

    def sync(self) -> None:
        """Read the entries of all channels soon, after an outage."""
        for events in self._events.values():
            events.sync()

    def tick(self, now: float) -> None:
        """Close the events without subscribers, and sync those whose turn it is; called about once a second.

        :param now: seconds by the clock.
        """
        for channel, events in list(self._events.items()):
            if len(events) == 0:
                del self._events[channel]
                self._to_sync.discard(channel)
                events.close()
        due = self._to_sync.take(now, SYNC_INTERVAL)
        if self._engine.across_processes:
            for channel in due:
                self._events[channel].sync()


class PresenceEvents:
    """The presence events of one channel, for the subscribers on this node that ask for them.

    :param channel: the channel.
    :param engine: where presence entries are read.
    :param subscriptions: the channels of this node, for the presence channel.
    :param is_settled: returns whether the entries in the engine are known to be complete.
    :param clock: by which syncs are timed.
    """

    def __init__(
        self,
        channel: str,
        engine: Engine,
        subscriptions: Subscriptions,
        is_settled: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self.channel = channel
        self._engine = engine
        self._subscriptions = subscriptions
        self._is_settled = is_settled
        self._clock = clock
        self._state, self._users = PresenceState(), Users()
        # Lossless: a client that is too slow is disconnected rather than left with wrong entries.
        self._fan_outs: dict[JoinLeave, FanOut] = {
            join_leave: FanOut(channel, subscriptions.schedule, lossless=True)
            for join_leave in get_args(JoinLeave)
        }
        # The ids of subscribers that are about to be added.
        self._expected: set[str] = set()
        self._diffs = CallbackSubscriber(f"presence events:{channel}", self._on_diff)
        # Reads the engine until the state is certain.
        self._syncing: asyncio.Task[None] | None = None
        self._has_to_sync = False

    def __len__(self) -> int:
        """Return how many subscribers there are, with those that are expected."""
        return len(self._expected) + sum(map(len, self._fan_outs.values()))

    # Lifecycle

    async def open(self) -> None:
        """Join the presence channel, and read the entries that there are.

        :raises EngineUnavailable: the engine cannot be reached.
        """
        await self._subscriptions.join(presence_channel(self.channel), self._diffs)
        try:
            await self._read()
        except BaseException:
            self._subscriptions.leave(presence_channel(self.channel), self._diffs)
            raise

    def close(self) -> None:
        """Leave the presence channel."""
        self._subscriptions.leave(presence_channel(self.channel), self._diffs)
        self._has_to_sync = False
        if self._syncing is not None:
            self._syncing.cancel()

    # Subscribers

    def expect(self, subscriber: Subscriber) -> None:
        """Stay open for ``subscriber``, which is about to be added."""
        self._expected.add(subscriber.id)

    def add(self, subscriber: Subscriber, join_leave: JoinLeave, form: Form) -> None:
        """Send the present entries to ``subscriber``, and from now on joins and leaves.

        :param join_leave: events of each connection, or of each user.
        :param form: how events are written to it.
        """
        self._expected.discard(subscriber.id)
        self._fan_outs[join_leave].add(subscriber, form)
        entries = self._users.entries if join_leave == "users" else self._state.entries
        frame = EventFrame(self.channel, "presence", {"entries": entries})
        deliver(form.batch((frame,), self.channel, lossless=True), (subscriber,))

    def remove(self, subscriber: Subscriber) -> None:
        """Send nothing more to ``subscriber``, if it was added."""
        self._expected.discard(subscriber.id)
        for fan_out in self._fan_outs.values():
            fan_out.remove(subscriber)

    # Presence

    def apply_join(self, connection: str, entry: PresenceEntry) -> None:
        """Apply a join on this node at once, ahead of its diff."""
        self._send(self._state.apply_diff([(connection, entry)]))

    def sync(self) -> None:
        """Read the engine soon: a diff may have been missed."""
        self._has_to_sync = True
        if self._syncing is None:
            self._syncing = asyncio.get_running_loop().create_task(self._sync())
            self._syncing.add_done_callback(self._synced)

    # Internal

    def _on_diff(self, packed: bytes) -> None:
        try:
            diff = decode_diff(packed)
        except InvalidData as exc:
            logger.warning("Ignored a presence diff in %r: %s", self.channel, exc)
            return
        if diff:
            self._send(self._state.apply_diff(diff))
        else:
            self.sync()

    async def _sync(self) -> None:
        backoff = Backoff()
        while self._has_to_sync:
            self._has_to_sync = False
            try:
                is_certain = await self._read()
            except EngineUnavailable as exc:
                logger.debug("Could not read the presence of %r (%s); trying again.", self.channel, exc)
                self._has_to_sync = True
                await backoff.wait()
            else:
                if not is_certain:
                    self._has_to_sync = True
                    await sleep(self._clock, RESYNC_INTERVAL)

    def _synced(self, task: asyncio.Task[None]) -> None:
        self._syncing = None
        if not task.cancelled() and (exc := task.exception()):
            logger.error(
                "Could not read the presence of %r; the next sync tries again.", self.channel, exc_info=exc
            )
        if self._has_to_sync and not task.cancelled():
            # sync() was called in the turn in which the task ended, and began none.
            self.sync()

    async def _read(self) -> bool:
        """Sync with the engine once.

        Returns ``False`` if a connection may be present that the engine does not have.
        """
        self._state.begin_sync()
        is_settled = self._is_settled()
        found = decode_entries(self.channel, await self._engine.presence(self.channel))
        self._send(self._state.sync(found, is_complete=is_settled))
        return is_settled or all(entry.connection in found for entry in self._state.entries)

    def _send(self, changes: Changes) -> None:
        changed = {"connections": changes, "users": self._users.merge(changes)}
        for join_leave, fan_out in self._fan_outs.items():
            joined, left = changed[join_leave]
            # Leaves first: a page that is reloaded leaves and joins.
            for event, entries in (("leave", left), ("join", joined)):
                if entries and len(fan_out):
                    fan_out.put_aside(EventFrame(self.channel, event, {"entries": entries}))
