"""All the connections that a node needs to receive and to publish; if one breaks, all of them are closed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from itertools import chain
from typing import Any

from redis.crc import key_slot

from hubbub.engines.base import CONNECT_TIMEOUT, batched
from hubbub.engines.diagnostics import Diagnosis
from hubbub.engines.redis.connection import OnMessage, RedisConnection, Request, deadline
from hubbub.engines.redis.diagnostics import inspect
from hubbub.engines.redis.generation import ask_generation, is_current
from hubbub.engines.redis.scripts import SCRIPTS, Script
from hubbub.engines.redis.topology import Topology
from hubbub.exceptions import EngineUnavailable

#: Topics in one SUBSCRIBE after a reconnection.
SUBSCRIBE_BATCH = 500


class Connections:
    """Two connections to the one server, or to each primary of the cluster: for commands, and for listening.

    They are opened once, and closed together with the first of them that breaks.

    :param topology: the servers.
    :param name: the name of all of them, for messages.
    :param on_message: called with each message of the topics that are subscribed to.
    :param on_moved: called with each command that was not carried out because another node of the cluster
        has its key.
    :param on_close: called once, with these connections and the reason, when they are closed.
    """

    def __init__(
        self,
        topology: Topology,
        name: str,
        on_message: OnMessage,
        on_moved: Callable[[Request], None],
        on_close: Callable[[Connections, str], None],
    ) -> None:
        self._slots = topology.slots
        self._name = name
        # Why they are closed; empty as long as they are not.
        self._reason = ""
        # The generation of each server; empty where the user may not ask for it.
        self._generations: Sequence[str] = ()
        self._is_open = False
        self._on_close = on_close
        self._on_moved = on_moved
        # Messages of a cluster's own publish/subscribe stay on the node of the topic.
        self._sharded = "S" if topology.slots else ""
        self._commands, self._listeners = (
            [
                RedisConnection(each.driver(**each.options), each.where, on_message, moved, self._closed)
                for each in topology.servers
            ]
            for moved in (self._moved, self._cannot_listen)
        )

    @property
    def all(self) -> tuple[RedisConnection, ...]:
        """All connections: those for commands, then those for listening."""
        return (*self._commands, *self._listeners)

    @property
    def is_closed(self) -> bool:
        """Whether one of the connections has broken, and so all are closed."""
        return self._reason != ""

    @property
    def identity(self) -> frozenset[str] | None:
        """The generations of the servers; ``None`` if they are not all known.

        If it is another one than before, the servers may have lost some of their data.
        """
        return frozenset(self._generations) if all(self._generations) else None

    def node(self, key: bytes) -> int:
        """Return the index of the server that has ``key``."""
        return self._slots[key_slot(key)] if self._slots else 0

    # Lifecycle

    async def open(
        self, topics: Collection[bytes], prepare: Callable[[Connections], Awaitable[None]]
    ) -> None:
        """Connect, and subscribe to ``topics``, which may change meanwhile.

        Nothing is awaited between the last read of ``topics`` and the return.

        :param prepare: called before any message is received, when scripts can be run already.
        :raises EngineUnavailable: a connection could not be made, or has broken; all are closed.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                for each in self.all:
                    await each.connect()
                for each in self._commands:
                    await _prepare(each)
                self._generations = [await _identify(each) for each in self._commands]
            # These have no deadline: there may be many channels. If answers stop coming, check() closes.
            await prepare(self)
            await self._subscribe_all(topics)
            if self.is_closed:
                raise EngineUnavailable(f"Lost {self._name} while connecting ({self._reason}).")
            self._is_open = True
        except TimeoutError:
            await self.close("no answer")
            raise EngineUnavailable(
                f"Could not connect to {self._name} (no answer within {CONNECT_TIMEOUT:g} s)."
            ) from None
        except BaseException:
            await self.close("it could not be prepared")
            raise

    def ping(self) -> None:
        """Ask all servers whether they are still primaries of the same generation; if not, close.

        Answers are not waited for. Where there is none, :meth:`check` closes.
        """

        # An error in reply means that the user may not ask: the server answers, which is good enough.
        def check_role(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled() and not answer.exception() and answer.result()[0] != b"master":
                self._closed("it is no primary any more")

        def check_generation(generation: str, answer: asyncio.Future[Any]) -> None:
            if (
                not answer.cancelled()
                and not answer.exception()
                and not is_current(generation, answer.result())
            ):
                self._closed("its replication id has changed")

        def ask(
            connection: RedisConnection, *command: str, done: Callable[[asyncio.Future[Any]], None]
        ) -> None:
            request = Request([*command], deadline=deadline())
            request.answer.add_done_callback(done)
            connection.send(request)

        for connection in self._listeners:
            ask(connection, "PING", done=ignore)
        for connection, generation in zip(self._commands, self._generations, strict=True):
            ask(connection, "ROLE", done=check_role)
            if generation:
                ask(connection, "INFO", "replication", done=partial(check_generation, generation))

    def check(self, now: float) -> None:
        """Fail the requests that are overdue, and close if a server does not answer."""
        for each in self.all:
            each.check(now)

    async def close(self, reason: str) -> None:
        """Close all connections, and wait until their tasks have ended."""
        self._closed(reason)
        for each in self.all:
            await each.wait_closed()

    # Commands

    def send(self, request: Request) -> None:
        """Send a command to the server that has its key."""
        node = self.node(request.key)
        if at := request.generation_at:
            # Not earlier: the request may have waited for these connections since before an outage.
            request.arguments[at] = self._generations[node]
        self._commands[node].send(request)

    def run(self, script: Script, keys: Sequence[str], *arguments: bytes | str | int) -> asyncio.Future[Any]:
        """Run a script on the server that has its keys, without a deadline."""
        request = script.request(keys, arguments, float("inf"))
        self.send(request)
        return request.answer

    async def inspect(self) -> Sequence[Diagnosis]:
        """Examine the servers, for ``hubbub doctor``."""
        is_cluster = bool(self._slots)
        found = [await inspect(each.ask, each.where, is_cluster=is_cluster) for each in self._commands]
        return list(chain.from_iterable(found))

    # Subscriptions

    def subscribe(self, topic: bytes) -> asyncio.Future[Any]:
        return self._listen("SUBSCRIBE", topic)

    def unsubscribe(self, topic: bytes) -> asyncio.Future[Any]:
        return self._listen("UNSUBSCRIBE", topic)

    # Internal

    def _closed(self, reason: str) -> None:
        """Close all connections, after one of them was closed or is to be."""
        if self.is_closed:
            return
        self._reason = reason
        self._on_close(self, reason)
        for each in self.all:
            each.close(reason)

    def _moved(self, request: Request) -> None:
        if self._is_open:
            self._on_moved(request)
        else:
            # While these connections are opened, on_moved would have the request wait for them, and they
            # wait for the answer.
            request.fail(self._is_changing)

    def _cannot_listen(self, request: Request) -> None:
        request.fail(self._is_changing)

    @property
    def _is_changing(self) -> str:
        return f"A command was not carried out: the topology of {self._name} is changing."

    def _listen(self, verb: str, *topics: bytes, until: float | None = None) -> asyncio.Future[Any]:
        """Send SUBSCRIBE or UNSUBSCRIBE for ``topics``, which lie in one slot."""
        request = Request(
            [f"{self._sharded}{verb}", *topics],
            topics[0],
            deadline() if until is None else until,
            replies=len(topics),
        )
        self._listeners[self.node(topics[0])].send(request)
        return request.answer

    async def _subscribe_all(self, topics: Collection[bytes]) -> None:
        """Subscribe to exactly the topics that are in ``topics`` when this returns."""
        subscribed: set[bytes] = set()
        while subscribed != (wanted := set(topics)):
            answers = []
            for verb, changing in (("SUBSCRIBE", wanted - subscribed), ("UNSUBSCRIBE", subscribed - wanted)):
                # The topics of one command have to lie in one slot.
                by_slot: defaultdict[int, list[bytes]] = defaultdict(list)
                for topic in changing:
                    by_slot[key_slot(topic) if self._slots else 0].append(topic)
                for batch in chain.from_iterable(batched(each, SUBSCRIBE_BATCH) for each in by_slot.values()):
                    answers.append(self._listen(verb, *batch, until=float("inf")))
            subscribed = wanted
            await asyncio.gather(*answers)


async def _prepare(connection: RedisConnection) -> None:
    """Load our scripts into a server, and make sure that it is a primary.

    :raises EngineUnavailable: it is a replica. A replica accepts PUBLISH, but delivers the message to none
        of the subscribers of its primary.
    """
    await asyncio.gather(*(connection.ask("SCRIPT", "LOAD", script.source) for script in SCRIPTS))
    try:
        role, *_ = await connection.ask("ROLE")
    except EngineUnavailable:
        if connection.is_closed:
            raise
        # The user may not ask.
        return
    if role != b"master":
        raise EngineUnavailable(
            f"Redis at {connection.where} is a replica ({role.decode()}); Hubbub needs the primary."
        )


async def _identify(connection: RedisConnection) -> str:
    try:
        return await ask_generation(connection.ask)
    except EngineUnavailable:
        if connection.is_closed:
            raise
        # The user may not ask.
        return ""


def ignore(answer: asyncio.Future[Any]) -> None:
    """Mark the answer as read, so that asyncio does not warn of an error that no caller waits for."""
    answer.cancelled() or answer.exception()
