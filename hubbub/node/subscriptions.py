"""The channels that a node is in: a feed for each, subscribed to, and left in the end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from hubbub.core.feed import Feed
from hubbub.core.forms import Form
from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import START, Position, Publication
from hubbub.core.subscriber import Subscriber
from hubbub.engines.base import Engine
from hubbub.exceptions import EngineUnavailable, HubNotRunning
from hubbub.node.repairs import READS, Repairs
from hubbub.node.replay import Replay
from hubbub.protocols.plain import PLAIN

logger = logging.getLogger("hubbub.node.subscriptions")

#: Seconds that a channel without members stays subscribed to: whoever reloads a page is back within that.
LINGER = 5.0

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
        self._repairs = Repairs(engine, history_of)
        # Members that are joining, by channel and id, until they leave.
        self._arrivals: dict[tuple[str, str], object] = {}
        self._replays: WeakValueDictionary[str, Replay] = WeakValueDictionary()
        self._reads = asyncio.Semaphore(READS)
        self._flushes: list[Callable[[], None]] = []
        # Of the node, for what is called while publications go out: the publisher's is another request's.
        self._context = copy_context()
        #: Bytes collected by feeds since the last flush.
        self.collected = 0

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds.values())

    async def stop(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        tasks = list(self._changing.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._repairs.stop()

    # Members

    async def join(
        self,
        channel: str,
        member: Subscriber,
        since: Position | None = None,
        history: int = 0,
        form: Form = PLAIN,
    ) -> Position:
        """Let ``member`` into ``channel``, and hand it first what was published after ``since``, or else the
        last ``history`` publications. Returns the position from which it goes on; nothing is awaited between
        joining and that. A member that leaves meanwhile, or takes nothing any more, is not let in.

        :param form: how it is written to.
        :raises Unrecoverable: not everything since ``since`` is there, and the form has no way to say so.
        :raises EngineUnavailable: the engine cannot be reached, and nothing has been handed over.
        """
        # A channel that somebody is joining is not left, however long that takes.
        self._joining[channel] += 1
        key = (channel, member.id)
        arrival = self._arrivals[key] = object()
        try:
            feed = await self._feed(channel)
            if since is None and not history and form is PLAIN:
                feed.join(member, form)
                return feed.position
            replay = self._replays.get(channel)
            if replay is None or replay.feed is not feed:
                replay = self._replays[channel] = Replay(feed, partial(self._read, feed))
            return await replay.join(member, form, since, history, lambda: self._arrivals.get(key) is arrival)
        finally:
            if self._arrivals.get(key) is arrival:
                del self._arrivals[key]
            self._joining[channel] -= 1
            if self._joining[channel] == 0:
                del self._joining[channel]
            self._linger(channel)

    def leave(self, channel: str, member: Subscriber) -> None:
        self._arrivals.pop((channel, member.id), None)
        feed = self._feeds.get(channel)
        if feed is not None:
            feed.leave(member)
            self._linger(channel)

    def position(self, channel: str) -> Position:
        """Where ``channel`` stands; ``START`` if the node is not in it, since whoever was to be let in takes
        nothing any more."""
        feed = self._feeds.get(channel)
        return START if feed is None else feed.position

    # Publications

    def publish(self, publication: Publication) -> None:
        """Take what the engine hands over."""
        feed = self._feeds.get(publication.channel)
        if feed is not None and (frame := feed.publish(publication)):
            self.collected += frame.cost

    def verify(self) -> None:
        """The engine was away: compare every channel with what it has."""
        self._repairs.verify()

    def forget(self, channel: str) -> None:
        """The history of ``channel`` has been removed: hand nothing of it to clients that come back."""
        if replay := self._replays.get(channel):
            replay.forget()
        if (feed := self._feeds.get(channel)) is not None:
            feed.forget()

    def schedule(self, flush: Callable[[], None]) -> None:
        """Have ``flush`` called at the end of this turn of the event loop."""
        # One callback for all the feeds that were published to in this turn.
        if not self._flushes:
            self._loop.call_soon(self._flush, context=self._context)
        self._flushes.append(flush)

    def tick(self, now: float) -> None:
        """Called about once a second."""
        self._leave_lingering(now)
        self._repairs.tick(now)

    # Resume

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

    async def _read(self, feed: Feed, since: Position, limit: int) -> HistoryPage:
        """A page of the channel's history, at a moment when the feed is not being repaired."""
        while True:
            if repair := self._repairs.get(feed):
                await asyncio.wait([repair], timeout=REPAIR_TIMEOUT)
                if not repair.done():
                    raise EngineUnavailable(f"Expected the history of {feed.channel!r}, but cannot read it.")
            epoch = feed.position.epoch
            async with self._reads:
                page = await self._engine.history(feed.channel, since, limit)
            # What was read before a repair that has ended meanwhile may be out of date.
            if not feed.is_repairing and feed.position.epoch == epoch:
                self._repairs.notice(feed, page.position)
                return page
            # An engine that answers at once would keep the loop from what ends the repair.
            await asyncio.sleep(0)

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
        history = self._history_of(channel)
        feed = Feed(channel, self.schedule, self._repairs.begin, history=history)
        # What comes before the position is known waits in the feed.
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
            if feed is None or len(feed) > 0 or channel in self._joining:
                continue
            if feed.is_repairing:
                # The repair may subscribe to it again.
                self._linger(channel)
            else:
                self._change(channel, self._unsubscribe(channel))

    def _flush(self) -> None:
        flushes, self._flushes = self._flushes, []
        self.collected = 0
        for flush in flushes:
            flush()
