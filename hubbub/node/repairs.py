"""Repairs: keep the feeds of a node in line with what the engine has.

A feed that misses a publication, or may miss one, has the history read. It finds that out by itself, from the
offsets of what comes. The last publication of a channel may be lost as well, and nothing comes after it. So
each channel is also *compared* with the engine regularly, and all of them when the engine has been away: the
engine is asked where many channels stand, in one call.
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
from hubbub.engines.base import Engine, Top
from hubbub.engines.reconnect import Backoff
from hubbub.exceptions import EngineUnavailable

logger = logging.getLogger("hubbub.node.repairs")

#: Seconds between two comparisons of a channel.
CHECK = 30.0

#: Channels compared in one call.
BATCH = 200

#: Seconds that a publication which the engine has may take to come, before it is taken for lost.
GRACE = 1.0

#: Histories read at a time.
READS = 16


class Repairs:
    """What the feeds of a node ask of the engine, besides publications.

    :param engine: where the history is read.
    :param history_of: what a channel is declared to keep, if it is.
    """

    def __init__(self, engine: Engine, history_of: Callable[[str], History | None]) -> None:
        self._engine = engine
        self._history_of = history_of
        self._loop = asyncio.get_running_loop()
        self._feeds: Rotation[Feed] = Rotation()
        # What is done for a feed that lets wait what comes. A channel that was left may be subscribed to
        # again, with another feed, before that has ended.
        self._tasks: dict[Feed, asyncio.Task[None]] = {}
        self._reads = asyncio.Semaphore(READS)
        # One batch of comparisons at a time, so that the engine has time for other things.
        self._comparing = asyncio.Lock()
        self._check: asyncio.Task[None] | None = None
        # Feeds that let wait what comes until they are compared; and how often the engine has been away.
        self._held: set[Feed] = set()
        self._outages = 0
        # Feeds behind the engine: where they stood when that was seen last, where the engine was, and when to
        # look again. A publication is often on its way.
        self._behind: dict[Feed, tuple[Position, Position, float]] = {}
        # Channels that are to be declared again.
        self._lost: set[str] = set()
        self._has_stopped = False

    async def stop(self) -> None:
        """End what is under way, and begin nothing more."""
        self._has_stopped = True
        tasks = {*self._tasks.values(), *filter(None, [self._check])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def add(self, feed: Feed) -> None:
        """Look after ``feed`` from now on."""
        self._feeds.add(feed)

    def discard(self, feed: Feed) -> None:
        """Look after ``feed`` no more."""
        self._feeds.discard(feed)
        self._behind.pop(feed, None)
        self._lost.discard(feed.channel)

    def get(self, feed: Feed) -> asyncio.Task[None] | None:
        """The task for which ``feed`` lets wait what comes. Another one may follow it."""
        return self._tasks.get(feed)

    def begin(self, feed: Feed) -> None:
        """Read what ``feed`` misses, and tell it."""
        self._keep([feed], self._read_missing(feed))

    def notice(self, feed: Feed, top: Position) -> None:
        """The channel was seen at ``top``: have ``feed`` repaired if it has not come there in a moment."""
        if feed in self._feeds and top.epoch == feed.position.epoch and top.offset > feed.position.offset:
            self._behind.setdefault(feed, (feed.position, top, self._loop.time() + GRACE))

    def verify(self) -> None:
        """The engine was away: compare every channel with what it has now. Until that is known, publications
        wait: a server that was set back gives out offsets a second time, and the next one would seem to
        follow."""
        self._outages += 1
        self._behind.clear()
        held = [feed for feed in self._feeds if feed not in self._held and feed.hold()]
        self._held.update(held)
        for first in range(0, len(held), BATCH):
            batch = held[first : first + BATCH]
            self._keep(batch, self._compare_held(batch))

    def tick(self, now: float) -> None:
        """Called about once a second: compare the channels whose turn it is."""
        self._look_again(now)
        if self._check is not None:
            # Those whose turn it is wait for theirs.
            return
        due = self._feeds.take(now, CHECK)
        for feed in due:
            feed.trim()
        compared = [feed for feed in due if not feed.is_repairing and self._has_history(feed)]
        if compared and self._engine.across_processes:
            self._check = self._loop.create_task(self._compare(compared))
            self._check.add_done_callback(self._compared)

    # Comparisons

    async def _compare(self, feeds: Sequence[Feed]) -> None:
        """Have those of ``feeds`` repaired that are not where the engine is. Publications are delivered
        meanwhile."""
        remaining = iter(feeds)
        while batch := [(feed, feed.position, feed.last_id) for feed in islice(remaining, BATCH)]:
            async with self._comparing:
                tops = await self._engine.tops([feed.channel for feed, _, _ in batch])
            for (feed, stood, last_id), top in zip(batch, tops, strict=True):
                if feed in self._feeds and not feed.is_repairing:
                    self._judge(feed, stood, last_id, top)

    def _judge(self, feed: Feed, stood: Position, last_id: str, top: Top) -> None:
        """
        :param stood: where ``feed`` was before the engine was asked. It may have moved on since.
        :param last_id: of the publication there.
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

    def _look_again(self, now: float) -> None:
        """Have those repaired to which what the engine has did not come."""
        for feed, (stood, top, due) in list(self._behind.items()):
            if due > now:
                # They are in the order of their time.
                break
            del self._behind[feed]
            if feed.position.epoch != top.epoch or feed.position.offset >= top.offset:
                continue
            if feed.position == stood:
                feed.verify()
            else:
                # Publications come, one after the other; the last ones may do so yet.
                self._behind[feed] = (feed.position, top, now + GRACE)

    def _compared(self, task: asyncio.Task[None]) -> None:
        self._check = None
        if task.cancelled() or (exc := task.exception()) is None:
            return
        if isinstance(exc, EngineUnavailable):
            # They are when it is back, or else when it is their turn again.
            logger.debug("Could not compare channels with the engine: %s", exc)
        else:
            logger.error("Could not compare channels with the engine.", exc_info=exc)

    async def _compare_held(self, feeds: Sequence[Feed]) -> None:
        """Let those of ``feeds`` go on that are where the engine is, and have the others repaired."""
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
            # What was asked before another outage may be out of date.
            if self._outages == outages:
                break
        self._held.difference_update(feeds)
        for feed, top in answers:
            if self._agrees(feed, top):
                feed.repaired((), top.position)
            else:
                self.begin(feed)

    def _agrees(self, feed: Feed, top: Top) -> bool:
        """Whether ``feed`` has all that the engine has, and the engine is ready to keep more."""
        is_lost = top.position == START and self._history_of(feed.channel) is not None
        return feed.stands_at(*top) and not is_lost

    # Repairs

    async def _read_missing(self, feed: Feed) -> None:
        backoff = Backoff()
        while True:
            try:
                async with self._reads:
                    page = await self._read(feed)
                    if feed.contradicts(page.publications, page.position):
                        logger.warning("%r was set back to an earlier state.", feed.channel)
                        # Before anybody is told: who comes back then must not find the old epoch.
                        await self._engine.renew_epoch(feed.channel, page.position.epoch)
                        page = await self._read(feed)
            except Exception as exc:
                self._log(exc, f"{feed.channel!r}")
                await backoff.wait()
            else:
                feed.repaired(page.publications, page.position)
                return

    async def _read(self, feed: Feed) -> HistoryPage:
        """What ``feed`` may miss."""
        page = await self._engine.history(feed.channel, feed.since)
        history = self._history_of(feed.channel)
        if page.position == START and history is not None and feed in self._feeds:
            # Publishers that do not know what the channel is declared to keep would publish to it without a
            # history from now on.
            logger.info("The engine has lost the history of %r; a new one begins.", feed.channel)
            self._lost.add(feed.channel)
        if feed.channel in self._lost:
            # An engine that fails at it may have ended the subscription that there was: this is tried until
            # it has succeeded, even if the channel has a history by then.
            await self._engine.subscribe(feed.channel, history)
            self._lost.discard(feed.channel)
        if feed.position != START and feed.position.epoch != page.position.epoch:
            # Nothing was read, since nothing follows. The feed is to know what stands at the top now.
            page = await self._engine.history(feed.channel, None, 1, True)
        return page

    def _has_history(self, feed: Feed) -> bool:
        return feed.position != START or self._history_of(feed.channel) is not None

    # Inside

    def _log(self, exc: Exception, what: str) -> None:
        if isinstance(exc, EngineUnavailable):
            logger.debug("Could not read the history of %s: %s", what, exc)
        else:
            logger.error("Could not read the history of %s; it is tried again.", what, exc_info=exc)

    def _keep(self, feeds: Sequence[Feed], repair: Coroutine[Any, Any, None]) -> None:
        if self._has_stopped:
            repair.close()
            return
        task = self._loop.create_task(repair)
        self._tasks.update(dict.fromkeys(feeds, task))
        task.add_done_callback(lambda _: self._ended(feeds, task))

    def _ended(self, feeds: Sequence[Feed], task: asyncio.Task[None]) -> None:
        for feed in feeds:
            # There may be another one by now.
            if self._tasks.get(feed) is task:
                del self._tasks[feed]
        if not task.cancelled() and (exc := task.exception()):
            logger.error("Could not repair %d channels.", len(feeds), exc_info=exc)
