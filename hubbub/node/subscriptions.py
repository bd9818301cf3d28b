"""Subscriptions: the channels that a node has subscribed to in the engine, and the feed of each."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from hubbub.core.counts import Counts
from hubbub.core.feed import Feed
from hubbub.core.forms import Form
from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import INTERNAL, START, Position, Publication
from hubbub.core.subscriber import Subscriber
from hubbub.engines.base import Engine
from hubbub.exceptions import EngineUnavailable, HubNotRunning
from hubbub.node.clock import Clock
from hubbub.node.repairs import READS, Repairs
from hubbub.node.replay import Replay
from hubbub.node.snapshots import Snapshot, join_with_snapshot
from hubbub.protocols.plain import PLAIN

logger = logging.getLogger(__name__)

#: Seconds for which a node stays subscribed to a channel without subscribers: a page that is reloaded is back
#: by then.
LINGER = 5.0

#: Seconds for which a subscriber that joins waits for a repair of the feed.
REPAIR_TIMEOUT = 5.0


class Subscriptions:
    """The channels of a node, and their subscribers. The engine is called for the first and the last.

    :param engine: where publications come from.
    :param history_of: returns the declared history of a channel, or ``None``.
    :param clock: by which empty channels are left, histories expire and repairs are due.
    :param counts: to which the events of the channels are added.
    """

    def __init__(
        self,
        engine: Engine,
        history_of: Callable[[str], History | None],
        clock: Clock,
        counts: Counts | None = None,
    ) -> None:
        self._engine = engine
        self._history_of = history_of
        self._clock = clock
        self._counts = counts or Counts()
        # Of channels in which nodes talk to each other; these are not the application's.
        self._internal_counts = Counts()
        self._loop = asyncio.get_running_loop()
        self._feeds: dict[str, Feed] = {}
        # Channels that were joined or left lately, and when, in that order. Those without subscribers are
        # unsubscribed from after LINGER seconds.
        self._lingering: dict[str, float] = {}
        self._joining: Counter[str] = Counter()
        # The task that subscribes to a channel or unsubscribes from it, one at a time for each channel.
        self._changing: dict[str, asyncio.Task[None]] = {}
        self._repairs = Repairs(engine, history_of, clock)
        # Subscribers that are joining, by channel and id, until they have joined or left.
        self._arrivals: dict[tuple[str, str], object] = {}
        self._replays: WeakValueDictionary[str, Replay] = WeakValueDictionary()
        self._reads = asyncio.Semaphore(READS)
        self._flushes: list[Callable[[], None]] = []
        # The node's context, in which publications are delivered: the publisher's is that of another request.
        self._context = copy_context()
        #: Bytes collected by feeds since the last flush.
        self.collected = 0

    def __iter__(self) -> Iterator[Feed]:
        # A copy, made in one step: threads that read counts iterate too.
        return iter(list(self._feeds.values()))

    # Lifecycle

    async def stop(self) -> None:
        """Cancel all calls of the engine, and begin no more."""
        tasks = list(self._changing.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._repairs.stop()

    # Subscribers

    async def join(
        self,
        channel: str,
        subscriber: Subscriber,
        since: Position | None = None,
        history: int = 0,
        form: Form = PLAIN,
        *,
        snapshot: Snapshot | None = None,
    ) -> Position:
        """Write the publications that ``subscriber`` has missed, then add it to the feed of ``channel``.

        Nothing is awaited between the step in which it is added and the return. A subscriber that leaves
        meanwhile, or whose client takes nothing more, is not added.

        :param since: the position from which it resumes.
        :param history: instead, how many of the last publications are written first.
        :param form: how publications are written to it.
        :param snapshot: reads the state with which it begins, unless ``since`` is recovered; see
            :func:`~hubbub.node.snapshots.join_with_snapshot`.
        :return: the position up to which everything has been written to it.
        :raises Unrecoverable: the history does not reach back to ``since``, and the form cannot say so.
        :raises EngineUnavailable: the engine cannot be reached, and nothing has been written.
        """
        # The node stays subscribed to a channel that is being joined, however long that takes.
        self._joining[channel] += 1
        key = (channel, subscriber.id)
        arrival = self._arrivals[key] = object()
        try:
            feed = await self._feed(channel)
            if since is None and not history and snapshot is None and not form.reports_recovery:
                feed.join(subscriber, form)
                return feed.position
            replay = self._replays.get(channel)
            if replay is None or replay.feed is not feed:
                replay = self._replays[channel] = Replay(feed, partial(self._read, feed), self._clock)

            def is_wanted() -> bool:
                return self._arrivals.get(key) is arrival

            if snapshot is not None:
                return await join_with_snapshot(replay, subscriber, form, since, snapshot, is_wanted)
            return await replay.join(subscriber, form, since, history, is_wanted)
        finally:
            if self._arrivals.get(key) is arrival:
                del self._arrivals[key]
            self._joining[channel] -= 1
            if self._joining[channel] == 0:
                del self._joining[channel]
            self._linger(channel)

    def leave(self, channel: str, subscriber: Subscriber) -> None:
        """Remove ``subscriber`` from the feed of ``channel``, also if it is still joining."""
        self._arrivals.pop((channel, subscriber.id), None)
        feed = self._feeds.get(channel)
        if feed is not None:
            feed.leave(subscriber)
            self._linger(channel)

    def position(self, channel: str) -> Position:
        """Return the position of the feed of ``channel``, or ``START`` if the node is not subscribed to it.

        That is so when the only subscriber could not be added because its client takes nothing more.
        """
        feed = self._feeds.get(channel)
        return START if feed is None else feed.position

    # Publications

    def publish(self, publication: Publication) -> None:
        """Deliver a publication of the engine to the subscribers of its channel."""
        feed = self._feeds.get(publication.channel)
        if feed is not None and (frame := feed.publish(publication)):
            self.collected += frame.cost

    def verify(self) -> None:
        """Compare every channel with the engine, after an outage."""
        self._repairs.verify()

    def forget(self, channel: str) -> None:
        """Forget the history of ``channel``, which has been removed: no subscriber may resume from it."""
        if replay := self._replays.get(channel):
            replay.forget()
        if (feed := self._feeds.get(channel)) is not None:
            feed.forget()

    def schedule(self, flush: Callable[[], None]) -> None:
        """Call ``flush`` at the end of this turn of the event loop."""
        # One callback for all feeds that were published to in this turn.
        if not self._flushes:
            self._loop.call_soon(self._flush, context=self._context)
        self._flushes.append(flush)

    def flush(self) -> None:
        """Deliver the publications of this turn of the event loop now."""
        if self._flushes:
            self._context.run(self._flush)

    def tick(self, now: float) -> None:
        """Leave channels and begin repairs that are due; called about once a second.

        :param now: seconds by the clock.
        """
        self._leave_lingering(now)
        self._repairs.tick(now)

    # Internal: joining

    async def _feed(self, channel: str) -> Feed:
        """Return the feed of ``channel``, subscribed to in the engine."""
        while True:
            changing = self._changing.get(channel)
            # A task that is done is not waited for: that would not give the loop a turn to remove it.
            if changing is not None and not changing.done():
                # The task is shared by all callers that wait for it: cancelling one of them does not cancel
                # it.
                await asyncio.wait([changing])
                if changing.cancelled():
                    # By stop(). CancelledError is for a caller that has been cancelled, and this one has not.
                    raise HubNotRunning(f"The hub stopped before it had subscribed to {channel!r}.")
                changing.result()
            elif (feed := self._feeds.get(channel)) is not None:
                return feed
            else:
                self._change(channel, self._subscribe(channel))

    async def _read(self, feed: Feed, since: Position, limit: int) -> HistoryPage:
        """Read a page of the channel's history while the feed is not being repaired."""
        while True:
            if repair := self._repairs.get(feed):
                await asyncio.wait([repair], timeout=REPAIR_TIMEOUT)
                if not repair.done():
                    raise EngineUnavailable(
                        f"Could not read the history of {feed.channel!r} within {REPAIR_TIMEOUT:g} s."
                    )
            epoch = feed.position.epoch
            async with self._reads:
                page = await self._engine.history(feed.channel, since, limit)
            # A repair that has ended during the read may have made the page out of date.
            if not feed.is_repairing and feed.position.epoch == epoch:
                self._repairs.notice(feed, page.position)
                return page
            # An engine that answers without suspending would keep the loop from ending the repair.
            await asyncio.sleep(0)

    # Internal: the engine

    def _change(self, channel: str, change: Coroutine[Any, Any, None]) -> None:
        def done(task: asyncio.Task[None]) -> None:
            if self._changing.get(channel) is task:
                del self._changing[channel]
            # Callers that wait get the exception. If there are none any more, asyncio is not to warn about
            # it.
            task.cancelled() or task.exception()

        task = self._changing[channel] = self._loop.create_task(change)
        task.add_done_callback(done)

    async def _subscribe(self, channel: str) -> None:
        history = self._history_of(channel)
        feed = Feed(
            channel,
            self.schedule,
            self._repairs.begin,
            history=history,
            clock=self._clock.time,
            counts=self._internal_counts if channel.startswith(INTERNAL) else self._counts,
        )
        # Publications that come before the position is known wait in the feed.
        feed.hold()
        self._feeds[channel] = feed
        self._repairs.add(feed)
        try:
            top = await self._engine.subscribe(channel, history)
        except BaseException:
            del self._feeds[channel]
            self._repairs.discard(feed)
            raise
        feed.opened(*top)

    async def _unsubscribe(self, channel: str) -> None:
        self._repairs.discard(self._feeds.pop(channel))
        try:
            await self._engine.unsubscribe(channel)
        except EngineUnavailable as exc:
            logger.debug("Could not unsubscribe from %r (%s); ignoring its publications.", channel, exc)

    def _linger(self, channel: str) -> None:
        """Unsubscribe from ``channel`` in a while, if it has no subscribers then."""
        # At the end again: the dictionary is in the order of these times.
        self._lingering.pop(channel, None)
        self._lingering[channel] = self._clock.time()

    def _leave_lingering(self, now: float) -> None:
        for channel, since in list(self._lingering.items()):
            if since + LINGER > now:
                break
            del self._lingering[channel]
            feed = self._feeds.get(channel)
            if channel in self._changing:
                # Subscribing takes long, and the subscriber may have left meanwhile: checked again later.
                self._linger(channel)
                continue
            if feed is None or len(feed) > 0 or channel in self._joining:
                continue
            if feed.is_repairing:
                # The repair may subscribe again.
                self._linger(channel)
            else:
                self._change(channel, self._unsubscribe(channel))

    def _flush(self) -> None:
        flushes, self._flushes = self._flushes, []
        self.collected = 0
        for flush in flushes:
            flush()
