"""The supervisor: replaces connections that were lost, and keeps commands waiting meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from hubbub.engines.base import ANSWER_TIMEOUT, Sink
from hubbub.engines.diagnostics import Diagnosis
from hubbub.engines.reconnect import Reconnector
from hubbub.engines.redis.address import Address
from hubbub.engines.redis.connection import Request, deadline
from hubbub.engines.redis.connections import Connections, ignore
from hubbub.engines.redis.scripts import Script
from hubbub.engines.redis.topology import Locator

#: Seconds between two searches for overdue requests, and between two pings of the servers.
TICK = 0.25
PING_INTERVAL = 2.0

#: Called with a channel and the payload of a message in it.
OnPayload: TypeAlias = Callable[[str, bytes], None]


class Supervisor:
    """Keeps connections to the servers open.

    A command is sent at once, or waits for connections for at most ``ANSWER_TIMEOUT`` seconds.

    :param address: the address of the servers.
    :param on_payload: called with each message of the channels that are subscribed to.
    :param prepare: called with new connections before any message is received and any command is sent.
    :param check_started: raises :class:`HubNotRunning` unless the engine is started.
    """

    def __init__(
        self,
        address: Address,
        on_payload: OnPayload,
        prepare: Callable[[Connections], Awaitable[None]],
        check_started: Callable[[], object],
    ) -> None:
        self._address = address
        self._on_payload = on_payload
        self._prepare = prepare
        self._check_started = check_started
        self._locator = Locator(address)
        self._reconnector = Reconnector(str(address), self._connect, self._serve)
        #: ``None`` during an outage.
        self.connections: Connections | None = None
        #: Rises whenever the servers may have lost some of their data: they were restarted, or replaced.
        self.generation = 0
        # The identity of the last connections.
        self._identity: frozenset[str] | None = None
        # The present connections, or those that are being opened. To be checked for silence.
        self._latest: Connections | None = None
        # The reason why the present connections were lost, once they are.
        self._lost: asyncio.Future[str] | None = None
        # Subscriptions: topic -> channel.
        self._channels: dict[bytes, str] = {}
        # Requests that wait for connections, the oldest first.
        self._waiting: deque[Request] = deque()
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked = self._pinged = 0.0

    # Lifecycle

    async def start(self, sink: Sink) -> None:
        """Open the first connections.

        :raises EngineUnavailable: there is no server.
        """
        # The first connections begin a new generation: the servers may have lost data since the last stop.
        self._identity = None
        await self._reconnector.start(sink)
        loop = asyncio.get_running_loop()
        self._ticked = self._pinged = loop.time()
        self._ticker = loop.call_later(TICK, self._tick)

    async def stop(self) -> None:
        """Close the connections, and fail all commands that have no answer yet."""
        if self._ticker is not None:
            self._ticker.cancel()
        await self._reconnector.stop()
        connections, self.connections = self.connections, None
        if connections is not None:
            await connections.close("the engine was stopped")
        while self._waiting:
            self._waiting.popleft().fail(
                f"A command was not sent to {self._address}: the engine was stopped."
            )
        self._channels.clear()

    # Commands

    def run(self, script: Script, keys: Sequence[str], *arguments: bytes | str | int) -> asyncio.Future[Any]:
        """Run a script on the server that has its keys."""
        return self._send(script.request(keys, arguments, deadline()))

    def ask(self, command: str, key: str, *arguments: bytes | str | int) -> asyncio.Future[Any]:
        """Send a command to the server that has its key."""
        return self._send(Request([command, key, *arguments], key.encode(), deadline()))

    async def inspect(self) -> Sequence[Diagnosis]:
        """Examine the servers, for ``hubbub doctor``."""
        self._check_started()
        return await self.connections.inspect() if self.connections is not None else ()

    def _send(self, request: Request) -> asyncio.Future[Any]:
        self._check_started()
        if self.connections is None:
            self._waiting.append(request)
        else:
            self.connections.send(request)
        return request.answer

    # Subscriptions

    async def subscribe(self, topic: bytes, channel: str) -> None:
        """Receive the messages of ``topic``, as those of ``channel``."""
        self._check_started()
        self._channels[topic] = channel
        # During an outage, the next connections begin with subscribing to all topics.
        if self.connections is not None:
            await self.connections.subscribe(topic)

    def unsubscribe(self, topic: bytes) -> asyncio.Future[Any] | None:
        """Receive no more messages of ``topic``.

        :return: the server's confirmation, which need not be waited for; ``None`` if there is none to come.
        """
        if self._channels.pop(topic, None) is None or self.connections is None:
            return None
        answer = self.connections.unsubscribe(topic)
        answer.add_done_callback(ignore)
        return answer

    # Internal: connections

    async def _connect(self) -> None:
        """Open connections that are subscribed to all topics, and send the commands that wait.

        :raises EngineUnavailable: that is not possible now.
        """
        topology = await self._locator.locate()
        connections = Connections(
            topology, str(self._address), self._on_message, self._waiting.append, self._on_close
        )
        self._latest = connections
        await connections.open(self._channels.keys(), self._prepare)
        # Nothing is awaited between the last read of the topics, in open(), and this: a topic that is added
        # from now on is subscribed to by subscribe().
        self.connections = connections
        self._lost = asyncio.get_running_loop().create_future()
        if connections.identity is None or connections.identity != self._identity:
            self.generation += 1
        self._identity = connections.identity
        while self._waiting:
            connections.send(self._waiting.popleft())

    async def _serve(self) -> str:
        """Wait until the connections are lost, and return the reason."""
        assert self._lost is not None
        return await self._lost

    def _on_close(self, connections: Connections, reason: str) -> None:
        if connections is self.connections:
            # In the same step, so that no command is sent on connections that are closed.
            self.connections = None
            assert self._lost is not None
            if not self._lost.done():
                self._lost.set_result(reason)

    def _on_message(self, topic: bytes, payload: bytes) -> None:
        channel = self._channels.get(topic)
        if channel is not None:
            self._on_payload(channel, payload)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(TICK, self._tick)
        now = loop.time()
        was_late = now - self._ticked > 1
        self._ticked = now
        if was_late:
            # The event loop was blocked, or the process was suspended. Answers that seem overdue may be in
            # the socket's buffer.
            return
        while self._waiting and self._waiting[0].deadline <= now:
            self._waiting.popleft().fail(
                f"Gave up waiting for {self._address} after {ANSWER_TIMEOUT:g} s. {self._reconnector.error}"
            )
        if self.connections is not None and now - self._pinged >= PING_INTERVAL:
            self._pinged = now
            self.connections.ping()
        if self._latest is not None:
            self._latest.check(now)
