"""Repairs: keep the feeds of a node in line with the engine.

A feed that misses a publication has the history read (a *repair*). It notices that by the offset of the next
one. The last publication of a channel may be lost as well, with none after it. So each channel is also
*compared* with the engine regularly, and all of them after an outage: one call asks the engine for the
positions of many channels.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from itertools import islice
from typing import Any

from hubbub.core.feed import Feed
from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import START, Position
from hubbub.core.rotation import Rotation
from hubbub.engines.base import Engine, Top, batched
from hubbub.engines.reconnect import Backoff
from hubbub.exceptions import EngineUnavailable
from hubbub.node.clock import Clock

logger = logging.getLogger(__name__)

#: Seconds between two comparisons of a channel.
CHECK_INTERVAL = 30.0

#: Channels compared in one call.
BATCH = 200

#: Seconds that a publication may take from the engine to this node, before it counts as lost.
GRACE = 1.0

#: Histories that are read at the same time.
READS = 16


class Repairs:
    """The comparisons and repairs of all feeds of a node.

    :param engine: where the history is read.
    :param history_of: returns the declared history of a channel, or ``None``.
    :param clock: by which repairs are due.
    """

    def __init__(self, engine: Engine, history_of: Callable[[str], History | None], clock: Clock) -> None:
        self._engine = engine
        self._history_of = history_of
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._feeds: Rotation[Feed] = Rotation()
        # The comparison or repair of each feed that holds publications back meanwhile. By feed and not by
        # channel: a channel that was left may be subscribed to again, with another feed, before that has
        # ended.
        self._tasks: dict[Feed, asyncio.Task[None]] = {}
        self._reads = asyncio.Semaphore(READS)
        # One batch of comparisons at a time, so that the engine has time for other requests.
        self._comparing = asyncio.Lock()
        self._check: asyncio.Task[None] | None = None
        # Feeds that hold publications back until they are compared; and the number of outages so far.
        self._held: set[Feed] = set()
        self._outages = 0
        # Feeds behind the engine: their position when that was noticed, the engine's, and when they are
        # checked again. Often the publication is on its way.
        self._behind: dict[Feed, tuple[Position, Position, float]] = {}
        # Channels whose history is to be declared to the engine again.
        self._lost: set[str] = set()
        self._has_stopped = False

    # Lifecycle

    async def stop(self) -> None:
        """Cancel all comparisons and repairs, and begin no more."""
        self._has_stopped = True
        tasks = {*self._tasks.values(), *filter(None, [self._check])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def add(self, feed: Feed) -> None:
        """Compare and repair ``feed`` from now on."""
        self._feeds.add(feed)

    def discard(self, feed: Feed) -> None:
        """Compare and repair ``feed`` no longer."""
        self._feeds.discard(feed)
        self._behind.pop(feed, None)
        self._lost.discard(feed.channel)

    def get(self, feed: Feed) -> asyncio.Task[None] | None:
        """Return the task for which ``feed`` holds publications back, if any. Another one may follow it."""
        return self._tasks.get(feed)

    def begin(self, feed: Feed) -> None:
        """Begin to read the publications that ``feed`` has missed."""
        self._keep([feed], self._read_missing(feed))

    def notice(self, feed: Feed, top: Position) -> None:
        """Repair ``feed`` if it does not reach ``top``, the engine's position, within ``GRACE`` seconds."""
        if feed in self._feeds and top.epoch == feed.position.epoch and top.offset > feed.position.offset:
            self._behind.setdefault(feed, (feed.position, top, self._clock.time() + GRACE))

    def verify(self) -> None:
        """Compare every channel with the engine, after an outage.

        Until a channel is compared, its publications wait: a server that was restored from an older state
        gives out offsets a second time, and the next publication would seem to be the one that follows.
        """
        self._outages += 1
        self._behind.clear()
        held = [feed for feed in self._feeds if feed not in self._held and feed.hold()]
        self._held.update(held)
        for batch in batched(held, BATCH):
            self._keep(batch, self._compare_held(batch))

    def tick(self, now: float) -> None:
        """Compare the channels whose turn it is; called about once a second.

        :param now: seconds by the clock.
        """
        self._check_behind(now)
        if self._check is not None:
            # The channels whose turn it is wait until this one has ended.
            return
        due = self._feeds.take(now, CHECK_INTERVAL)
        for feed in due:
            feed.trim()
        compared = [feed for feed in due if not feed.is_repairing and self._has_history(feed)]
        if compared and self._engine.across_processes:
            self._check = self._loop.create_task(self._compare(compared))
            self._check.add_done_callback(self._compared)

    # Internal: comparisons

    async def _compare(self, feeds: Sequence[Feed]) -> None:
        """Compare ``feeds`` with the engine, and repair those that differ. Delivery continues meanwhile."""
        remaining = iter(feeds)
        while batch := [(feed, feed.position, feed.last_id) for feed in islice(remaining, BATCH)]:
            async with self._comparing:
                tops = await self._engine.tops([feed.channel for feed, _, _ in batch])
            for (feed, stood, last_id), top in zip(batch, tops, strict=True):
                if feed in self._feeds and not feed.is_repairing:
                    self._judge(feed, stood, last_id, top)

    def _judge(self, feed: Feed, stood: Position, last_id: str, top: Top) -> None:
        """Decide whether ``feed`` is repaired now, later or not at all.

        :param stood: the position of ``feed`` before the engine was asked. It may have advanced since.
        :param last_id: the id of the publication at that position.
        :param top: the answer of the engine.
        """
        position, id_ = top
        if self._agrees(feed, top) or feed.position.epoch != stood.epoch:
            return
        is_other = position == stood and "" not in (id_, last_id) and id_ != last_id
        is_set_back = position.epoch != stood.epoch or position.offset < stood.offset
        if position == START or is_set_back or is_other:
            feed.verify()
        else:
            self.notice(feed, position)

    def _check_behind(self, now: float) -> None:
        """Repair the feeds that have not reached the position of the engine in time."""
        for feed, (stood, top, due) in list(self._behind.items()):
            if due > now:
                # The dictionary is in the order of these times.
                break
            del self._behind[feed]
            if feed.position.epoch != top.epoch or feed.position.offset >= top.offset:
                continue
            if feed.position == stood:
                feed.verify()
            else:
                # Publications are coming, one after the other; the last ones may be on their way.
                self._behind[feed] = (feed.position, top, now + GRACE)

    def _compared(self, task: asyncio.Task[None]) -> None:
        self._check = None
        if task.cancelled() or (exc := task.exception()) is None:
            return
        if isinstance(exc, EngineUnavailable):
            # After the outage all are compared; and without one, each when its turn comes again.
            logger.debug("Could not compare channels with the engine (%s); trying again later.", exc)
        else:
            logger.error("Could not compare channels with the engine; trying again later.", exc_info=exc)

    async def _compare_held(self, feeds: Sequence[Feed]) -> None:
        """Compare ``feeds``, which hold publications back: release those that agree, repair the others."""
        backoff = Backoff()
        while True:
            outages = self._outages
            try:
                async with self._comparing:
                    tops = await self._engine.tops([feed.channel for feed in feeds])
                answers = list(zip(feeds, tops, strict=True))
            except Exception as exc:
                self._log(exc, f"{len(feeds)} channels")
                await backoff.wait()
                continue
            # Answers from before another outage may be out of date.
            if self._outages == outages:
                break
        self._held.difference_update(feeds)
        for feed, top in answers:
            if self._agrees(feed, top):
                feed.repaired((), top.position)
            else:
                self.begin(feed)

    def _agrees(self, feed: Feed, top: Top) -> bool:
        """Return whether ``feed`` has all publications, and the engine still has the declaration."""
        is_lost = top.position == START and self._history_of(feed.channel) is not None
        return feed.stands_at(*top) and not is_lost

    # Internal: repairs

    async def _read_missing(self, feed: Feed) -> None:
        backoff = Backoff()
        while True:
            try:
                async with self._reads:
                    page = await self._read(feed)
                    if feed.contradicts(page.publications, page.position):
                        logger.warning(
                            "The engine has set %r back to an earlier state; beginning a new epoch.",
                            feed.channel,
                        )
                        # Before subscribers are notified: a client that reconnects must not find the old
                        # epoch.
                        await self._engine.renew_epoch(feed.channel, page.position.epoch)
                        page = await self._read(feed)
            except Exception as exc:
                self._log(exc, f"{feed.channel!r}")
                await backoff.wait()
            else:
                if feed.repaired(page.publications, page.position):
                    feed.counts.repairs += 1
                else:
                    feed.counts.failed_repairs += 1
                return

    async def _read(self, feed: Feed) -> HistoryPage:
        """Read the publications that ``feed`` may have missed."""
        page = await self._engine.history(feed.channel, feed.since)
        history = self._history_of(feed.channel)
        if page.position == START and history is not None and feed in self._feeds:
            # Without a new declaration, publishers that do not know of it would publish without history from
            # now on.
            logger.info("The engine has lost the history of %r; beginning a new one.", feed.channel)
            self._lost.add(feed.channel)
        if feed.channel in self._lost:
            # An engine that fails here may have ended the present subscription. So this is repeated until it
            # succeeds, even if the channel has a history by then.
            await self._engine.subscribe(feed.channel, history)
            self._lost.discard(feed.channel)
        if feed.position != START and feed.position.epoch != page.position.epoch:
            # Of another epoch nothing is read. The feed needs the publication at the top now.
            page = await self._engine.history(feed.channel, None, 1, True)
        return page

    def _has_history(self, feed: Feed) -> bool:
        return feed.position != START or self._history_of(feed.channel) is not None

    # Internal: tasks

    def _log(self, exc: Exception, channels: str) -> None:
        if isinstance(exc, EngineUnavailable):
            logger.debug("Could not read the history of %s (%s); trying again.", channels, exc)
        else:
            logger.error("Could not read the history of %s; trying again.", channels, exc_info=exc)

    def _keep(self, feeds: Sequence[Feed], repair: Coroutine[Any, Any, None]) -> None:
        if self._has_stopped:
            repair.close()
            return
        task = self._loop.create_task(repair)
        self._tasks.update(dict.fromkeys(feeds, task))
        task.add_done_callback(lambda _: self._ended(feeds, task))

    def _ended(self, feeds: Sequence[Feed], task: asyncio.Task[None]) -> None:
        for feed in feeds:
            # There may be another task by now.
            if self._tasks.get(feed) is task:
                del self._tasks[feed]
        if not task.cancelled() and (exc := task.exception()):
            logger.error("Could not repair %d channels.", len(feeds), exc_info=exc)
