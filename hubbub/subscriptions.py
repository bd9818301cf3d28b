"""The channels that a node is in: a feed for each, subscribed to, repaired, and left in the end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from weakref import WeakValueDictionary

from hubbub.core.feed import Feed, Member
from hubbub.core.publication import START, Position, Publication
from hubbub.engines.backoff import Backoff
from hubbub.engines.base import Engine, Page
from hubbub.exceptions import EngineUnavailable, HubNotRunning, Unrecoverable
from hubbub.types import History

logger = logging.getLogger("hubbub.subscriptions")

#: Seconds that a channel without members stays subscribed to: whoever reloads a page is back within that.
LINGER = 5.0

#: Seconds between two looks at whether the engine has more of a channel than has come.
TAIL_CHECK = 30.0

#: Histories read at a time.
READS = 16

#: Seconds that who joins waits for a repair that is under way.
REPAIR_TIMEOUT = 5.0


class Subscriptions:
    """The channels that a node is in. Members come and go; the engine is asked when it has to be.

    :param engine: where publications come from.
    :param history_of: what a channel keeps, if it is declared to keep anything.
    """

    def __init__(self, engine: Engine, history_of: Callable[[str], History | None]) -> None:
        self._engine = engine
        self._history_of = history_of
        self._loop = asyncio.get_running_loop()
        self._feeds: dict[str, Feed] = {}
        # Channels that were joined or left lately, and when. Those without members are given up in a while.
        self._lingering: dict[str, float] = {}
        self._joining: Counter[str] = Counter()
        # The task that subscribes to a channel or leaves it; one at a time.
        self._changing: dict[str, asyncio.Task[None]] = {}
        self._repairs: dict[str, asyncio.Task[None]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._reads = asyncio.Semaphore(READS)
        self._tail_checked = self._loop.time()
        self._flushes: list[Callable[[], None]] = []
        #: Bytes collected by feeds since the last flush.
        self.collected = 0

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds.values())

    async def stop(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        tasks = [*self._repairs.values(), *self._changing.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Members

    async def join(
        self, channel: str, member: Member, since: Position | None = None, history: int = 0
    ) -> Position:
        """Let ``member`` into ``channel``, and hand it first what was published after ``since``, or else the
        last ``history`` publications. Returns the position from which it goes on.

        :raises Unrecoverable: not everything since ``since`` is there.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        # A channel that somebody is joining is not left, however long that takes.
        self._joining[channel] += 1
        try:
            feed = await self._feed(channel)
            if since is not None:
                await self._resume(feed, member, since)
            elif history:
                await self._join_with_history(feed, member, history)
            else:
                feed.join(member)
            return feed.position
        finally:
            self._joining[channel] -= 1
            if self._joining[channel] == 0:
                del self._joining[channel]
            self._linger(channel)

    def leave(self, channel: str, member: Member) -> None:
        feed = self._feeds.get(channel)
        if feed is not None:
            feed.leave(member)
            self._linger(channel)

    def position(self, channel: str) -> Position:
        """Where ``channel``, which has members here, stands."""
        return self._feeds[channel].position

    # Publications

    def publish(self, publication: Publication) -> None:
        """Take what the engine hands over."""
        feed = self._feeds.get(publication.channel)
        if feed is not None and (frame := feed.publish(publication)):
            self.collected += frame.cost

    def verify(self) -> None:
        """Compare every channel with what the engine has."""
        for feed in self._feeds.values():
            feed.verify()

    def schedule(self, flush: Callable[[], None]) -> None:
        """Have ``flush`` called at the end of this turn of the event loop."""
        # One callback for all the feeds that were published to in this turn.
        if not self._flushes:
            self._loop.call_soon(self._flush)
        self._flushes.append(flush)

    def tick(self, now: float) -> bool:
        """Called about once a second. Returns whether it was time to look for what may have been lost."""
        self._leave_lingering(now)
        if not self._engine.across_processes or now - self._tail_checked <= TAIL_CHECK:
            return False
        self._tail_checked = now
        for feed in self._feeds.values():
            if feed.position != START:
                feed.verify()
        return True

    # Joining

    async def _feed(self, channel: str) -> Feed:
        """The channel's feed, subscribed to."""
        while True:
            changing = self._changing.get(channel)
            # One that is done is not waited for: that would not give the loop a turn to forget it.
            if changing is not None and not changing.done():
                # Shared by all who wait for it, so that one who is cancelled does not stop it.
                await asyncio.wait([changing])
                if changing.cancelled():
                    # By stop(): a cancellation here would be one that nobody has sent.
                    raise HubNotRunning(f"The hub has stopped before {channel!r} was subscribed to.")
                changing.result()
            elif (feed := self._feeds.get(channel)) is not None:
                return feed
            else:
                self._change(channel, self._subscribe(channel))

    async def _resume(self, feed: Feed, member: Member, since: Position) -> None:
        # A client that is ahead of us comes from a node that was further on: the engine will know.
        is_ahead = since.epoch == feed.position.epoch and since.offset > feed.position.offset
        if not is_ahead and feed.resume(member, since):
            return
        # One at a time for each channel: the first to read fills the feed's memory for the others.
        async with self._lock(feed.channel):
            if not is_ahead and feed.resume(member, since):
                return
            # From where we stand if that is further back: what is between is news to the other members.
            page = await self._read(feed, feed.position if is_ahead else since)
            # From here on, nothing is awaited.
            feed.remember(page.publications, page.position)
            if not feed.resume(member, since, page.publications):
                raise Unrecoverable(feed.channel, *feed.position)

    async def _join_with_history(self, feed: Feed, member: Member, history: int) -> None:
        async with self._lock(feed.channel):
            while True:
                page = await self._read(feed, limit=history, reverse=True)
                publications = page.publications[::-1]
                feed.remember(publications, page.position)
                if not feed.is_repairing:
                    break
                # We are further behind than that: those who are in the channel get the rest first.
            offset, epoch = feed.position
            first = publications[0].offset if publications and publications[0].epoch == epoch else offset + 1
            since = Position(max(first - 1, offset - history), epoch)
            if not feed.resume(member, since, publications):
                feed.join(member)

    async def _read(
        self, feed: Feed, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> Page:
        """A page of the channel's history, at a moment when the feed is not being repaired."""
        while True:
            if repair := self._repairs.get(feed.channel):
                await asyncio.wait([repair], timeout=REPAIR_TIMEOUT)
                if not repair.done():
                    raise EngineUnavailable(f"Expected the history of {feed.channel!r}, but cannot read it.")
            page = await self._engine.history(feed.channel, since, limit, reverse)
            if not feed.is_repairing:
                return page

    def _lock(self, channel: str) -> asyncio.Lock:
        return self._locks.setdefault(channel, asyncio.Lock())

    # Subscriptions to the engine

    def _change(self, channel: str, change: Coroutine[Any, Any, None]) -> None:
        def done(task: asyncio.Task[None]) -> None:
            if self._changing.get(channel) is task:
                del self._changing[channel]
            # Whoever waits gets it; and if nobody does any more, it is not worth a warning.
            task.cancelled() or task.exception()

        task = self._changing[channel] = self._loop.create_task(change)
        task.add_done_callback(done)

    async def _subscribe(self, channel: str) -> None:
        feed = self._feeds[channel] = Feed(channel, self.schedule, self._repair)
        # What comes before the position is known waits in the feed, as during a repair.
        feed.is_repairing = True
        try:
            feed.position = (await self._engine.subscribe(channel, self._history_of(channel))).position
        except BaseException:
            del self._feeds[channel]
            raise
        feed.repaired((), feed.position)

    async def _unsubscribe(self, channel: str) -> None:
        del self._feeds[channel]
        try:
            await self._engine.unsubscribe(channel)
        except EngineUnavailable as exc:
            logger.debug("Could not unsubscribe from %r: %s", channel, exc)

    def _linger(self, channel: str) -> None:
        """Leave the channel in a while if nobody is in it then."""
        # Anew at the end: they are in the order of their time.
        self._lingering.pop(channel, None)
        self._lingering[channel] = self._loop.time()

    def _leave_lingering(self, now: float) -> None:
        for channel, since in list(self._lingering.items()):
            if since + LINGER > now:
                break
            del self._lingering[channel]
            feed = self._feeds.get(channel)
            if channel in self._changing:
                # Subscribing takes long, and who asked for it may have left: looked at again.
                self._linger(channel)
                continue
            if feed is None:
                continue
            if len(feed) == 0 and channel not in self._joining:
                self._change(channel, self._unsubscribe(channel))

    # Repairs

    def _repair(self, feed: Feed) -> None:
        task = self._loop.create_task(self._read_missing(feed))
        self._repairs[feed.channel] = task
        task.add_done_callback(lambda _: self._repaired(feed.channel, task))

    def _repaired(self, channel: str, task: asyncio.Task[None]) -> None:
        # The repair may have asked for another one.
        if self._repairs.get(channel) is task:
            del self._repairs[channel]
        if not task.cancelled() and (exc := task.exception()):
            logger.error("Could not repair %r.", channel, exc_info=exc)

    async def _read_missing(self, feed: Feed) -> None:
        backoff = Backoff()
        while True:
            try:
                async with self._reads:
                    page = await self._engine.history(feed.channel, feed.since)
                    if feed.contradicts(page.publications, page.position):
                        logger.warning("%r was set back to an earlier state.", feed.channel)
                        # Before anybody is told: who comes back then must not find the old epoch.
                        await self._engine.renew_epoch(feed.channel, page.position.epoch)
                        page = await self._engine.history(feed.channel, feed.since)
            except Exception as exc:
                if not isinstance(exc, EngineUnavailable):
                    logger.exception("Could not read the history of %r; it is tried again.", feed.channel)
                await backoff.wait()
            else:
                feed.repaired(page.publications, page.position)
                return

    def _flush(self) -> None:
        flushes, self._flushes = self._flushes, []
        self.collected = 0
        for flush in flushes:
            flush()
