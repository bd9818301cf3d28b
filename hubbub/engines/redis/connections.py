"""A session: the connections that make a node able to hear and to speak, from when all of them stand until
the first of them breaks."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from itertools import chain
from typing import Any

from redis.crc import key_slot

from hubbub.engines.base import Diagnosis
from hubbub.engines.redis.chunks import chunks
from hubbub.engines.redis.connection import CONNECT_TIMEOUT, Link, OnMessage, Request, deadline
from hubbub.engines.redis.diagnostics import inspect
from hubbub.engines.redis.generation import ask_generation, is_current
from hubbub.engines.redis.scripts import SCRIPTS, Script
from hubbub.engines.redis.topology import Layout
from hubbub.exceptions import EngineUnavailable

#: Channels that are named in one SUBSCRIBE after a reconnection.
SUBSCRIBE_CHUNK = 500


class Session:
    """Two links to each of the cluster's primaries, or to the one server: one for commands, one that listens.
    They live and die together.

    :param layout: where to connect to.
    :param where: all of it, in messages of errors.
    :param on_message: called with what comes in topics that were subscribed to.
    :param on_moved: called with a command that was not carried out because another node of the cluster is to.
    :param on_end: called once with the session, when it is of no more use.
    """

    def __init__(
        self,
        layout: Layout,
        where: str,
        on_message: OnMessage,
        on_moved: Callable[[Request], None],
        on_end: Callable[[Session], None],
    ) -> None:
        self._slots = layout.slots
        self.where = where
        #: Why it has ended; empty as long as it has not.
        self.trouble = ""
        # Of each server; empty if it does not tell.
        self._generations: Sequence[str] = ()
        self._is_open = False
        self._on_end = on_end
        self._on_moved = on_moved
        # A cluster's own publish/subscribe, which stays on the node of the channel.
        self._sharded = "S" if layout.slots else ""
        self._commands, self._listeners = (
            [Link(each.connection(), each.where, on_message, moved, self._ended) for each in layout.servers]
            for moved in (self._moved, self._cannot_listen)
        )

    @property
    def links(self) -> tuple[Link, ...]:
        return (*self._commands, *self._listeners)

    @property
    def identity(self) -> frozenset[str] | None:
        """What tells the data of these servers from what others have, or the same ones after a restart, which
        may have lost some of it; ``None`` if they do not tell."""
        return frozenset(self._generations) if all(self._generations) else None

    def node(self, key: bytes) -> int:
        """Which of the servers has what belongs to ``key``."""
        return self._slots[key_slot(key)] if self._slots else 0

    async def open(self, topics: Collection[bytes], prepare: Callable[[Session], Awaitable[None]]) -> None:
        """Connect, and subscribe to ``topics``, which may change meanwhile. Nothing is awaited between the
        last look at them and the return.

        :param prepare: called with this session before anything is heard: scripts can be run in it.
        :raises EngineUnavailable: that is not to be had.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                for each in self.links:
                    await each.connect()
                for each in self._commands:
                    await _prepare(each)
                self._generations = [await _identify(each) for each in self._commands]
            # However many there are: as long as answers come, it goes on.
            await prepare(self)
            await self._subscribe_all(topics)
            if self.trouble:
                raise EngineUnavailable(f"Expected Redis at {self.where}, but it went again: {self.trouble}.")
            self._is_open = True
        except TimeoutError:
            await self.close("no answer")
            raise EngineUnavailable(
                f"Expected Redis at {self.where}, but got no answer within {CONNECT_TIMEOUT:g} s."
            ) from None
        except BaseException:
            await self.close("it is of no use")
            raise

    def send(self, request: Request) -> None:
        """Send a command to where its key lies."""
        node = self.node(request.key)
        if at := request.generation_at:
            # Here and not before: it may have waited for this session since another one.
            request.arguments[at] = self._generations[node]
        self._commands[node].send(request)

    def run(self, script: Script, keys: Sequence[str], *arguments: bytes | str | int) -> asyncio.Future[Any]:
        """Run a script where its keys lie, as long as answers come."""
        request = script.request(keys, arguments, float("inf"))
        self.send(request)
        return request.answer

    def subscribe(self, topic: bytes) -> asyncio.Future[Any]:
        return self._listen("SUBSCRIBE", topic)

    def unsubscribe(self, topic: bytes) -> asyncio.Future[Any]:
        return self._listen("UNSUBSCRIBE", topic)

    def ping(self) -> None:
        """Ask all servers whether they are there, are still primaries, and have been ever since; if not, the
        session ends."""

        # A user who may not ask does not get to know; but that the server is there, we know.
        def check_role(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled() and not answer.exception() and answer.result()[0] != b"master":
                self._ended("it is no primary any more")

        def check_generation(generation: str, answer: asyncio.Future[Any]) -> None:
            if (
                not answer.cancelled()
                and not answer.exception()
                and not is_current(generation, answer.result())
            ):
                self._ended("its replication id has changed")

        def ask(link: Link, *command: str, done: Callable[[asyncio.Future[Any]], None]) -> None:
            request = Request([*command], deadline=deadline())
            request.answer.add_done_callback(done)
            link.send(request)

        for link in self._listeners:
            ask(link, "PING", done=ignore)
        for link, generation in zip(self._commands, self._generations, strict=True):
            ask(link, "ROLE", done=check_role)
            if generation:
                ask(link, "INFO", "replication", done=partial(check_generation, generation))

    async def inspect(self) -> Sequence[Diagnosis]:
        """What is to be said about the servers, for ``hubbub doctor``."""
        found = [await inspect(link.ask, link.where, is_cluster=bool(self._slots)) for link in self._commands]
        return list(chain.from_iterable(found))

    def check(self, now: float) -> None:
        """Give up what is overdue, and end if a server has fallen silent."""
        for link in self.links:
            link.check(now)

    async def close(self, reason: str) -> None:
        """End, if it has not yet, and wait until nothing is left of it."""
        self._ended(reason)
        for link in self.links:
            await link.wait_closed()

    # Inside

    def _ended(self, reason: str) -> None:
        if self.trouble:
            return
        self.trouble = reason
        self._on_end(self)
        # The others go with it.
        for link in self.links:
            link.close(reason)

    def _moved(self, request: Request) -> None:
        if self._is_open:
            self._on_moved(request)
        else:
            # It would wait for a session, and this one for it.
            request.fail(f"Expected {self.where} to stay as it was, but it is changing.")

    def _cannot_listen(self, request: Request) -> None:
        request.fail(f"Expected {self.where} to stay as it was, but it is changing.")

    def _listen(self, verb: str, *topics: bytes, until: float | None = None) -> asyncio.Future[Any]:
        """Send a command to whom we listen to about ``topics``, which lie in one slot."""
        request = Request(
            [f"{self._sharded}{verb}", *topics],
            topics[0],
            deadline() if until is None else until,
            replies=len(topics),
        )
        self._listeners[self.node(topics[0])].send(request)
        return request.answer

    async def _subscribe_all(self, topics: Collection[bytes]) -> None:
        """Subscribe to everything that is to be subscribed to when this returns."""
        subscribed: set[bytes] = set()
        while subscribed != (wanted := set(topics)):
            answers = []
            for verb, changing in (("SUBSCRIBE", wanted - subscribed), ("UNSUBSCRIBE", subscribed - wanted)):
                # One command can only name what lies in one slot.
                by_slot: defaultdict[int, list[bytes]] = defaultdict(list)
                for topic in changing:
                    by_slot[key_slot(topic) if self._slots else 0].append(topic)
                for chunk in chain.from_iterable(chunks(each, SUBSCRIBE_CHUNK) for each in by_slot.values()):
                    answers.append(self._listen(verb, *chunk, until=float("inf")))
            subscribed = wanted
            await asyncio.gather(*answers)


async def _prepare(commands: Link) -> None:
    """Tell a server our scripts.

    :raises EngineUnavailable: it is a replica. What is published there without history would be taken, but
        reach nobody elsewhere.
    """
    await asyncio.gather(*(commands.ask("SCRIPT", "LOAD", script.source) for script in SCRIPTS))
    try:
        role, *_ = await commands.ask("ROLE")
    except EngineUnavailable:
        if commands.is_closed:
            raise
        # The user may not ask.
        return
    if role != b"master":
        raise EngineUnavailable(
            f"Expected a primary at {commands.where}, but got a replica ({role.decode()})."
        )


async def _identify(commands: Link) -> str:
    try:
        return await ask_generation(commands.ask)
    except EngineUnavailable:
        if commands.is_closed:
            raise
        # The user may not ask.
        return ""


def ignore(answer: asyncio.Future[Any]) -> None:
    """A failure that nobody waits for is not worth a warning."""
    answer.cancelled() or answer.exception()
