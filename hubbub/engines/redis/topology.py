"""Which servers there are at the moment: what a URL names, what sentinels know, what a cluster looks like."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from hubbub.engines.redis.address import Target
from hubbub.engines.redis.connection import CONNECT_TIMEOUT, Link, Request
from hubbub.exceptions import EngineUnavailable

logger = logging.getLogger("hubbub.engines.redis")

#: Seconds until a sentinel must answer; then the next one is asked.
SENTINEL_TIMEOUT = 1.0

#: What a cluster divides its keys into.
SLOTS = 16384


class Server(NamedTuple):
    """Where to connect to, and what it is called in messages."""

    kind: type[AbstractConnection]
    options: dict[str, Any]
    where: str

    def connection(self) -> AbstractConnection:
        """One that has yet to be opened."""
        return self.kind(**self.options)


class Layout(NamedTuple):
    """The servers that hold everything.

    :param servers: the primaries.
    :param slots: which of them each of a cluster's slots lies on; empty without a cluster.
    """

    servers: Sequence[Server]
    slots: Sequence[int] = ()


class Locator:
    """Finds the servers of a target, which may be others each time.

    :param target: what the URL names.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        # The primaries of the cluster, when it was seen last.
        self._nodes: Sequence[tuple[str, int]] = ()

    async def locate(self) -> Layout:
        """Where everything is now.

        :raises EngineUnavailable: nobody knows.
        """
        target = self._target
        if target.sentinels:
            return Layout([await self._ask_sentinels()])
        if not target.nodes:
            return Layout([Server(target.connection, target.options, target.where)])
        trouble = "nobody knows"
        for host, port in dict.fromkeys((*self._nodes, *target.nodes)):
            try:
                return await self._ask_node(host, port)
            except EngineUnavailable as exc:
                trouble = str(exc)
        raise EngineUnavailable(f"Expected to learn about {target.where}, but: {trouble}")

    def _server(self, host: str, port: int) -> Server:
        target = self._target
        return Server(target.connection, target.options | {"host": host, "port": port}, f"{host}:{port}")

    async def _ask_node(self, host: str, port: int) -> Layout:
        """What the cluster looks like to one of its nodes."""
        server = self._server(host, port)
        link = Link(server.connection(), server.where, _ignore_message, _ignore_request, logger.debug)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await link.connect()
                ranges = await link.ask("CLUSTER", "SLOTS")
        except TimeoutError:
            raise EngineUnavailable(f"Expected an answer from {server.where}, but got none.") from None
        finally:
            link.close("it has been asked")
            await link.wait_closed()
        primaries: list[tuple[str, int]] = []
        slots = [0] * SLOTS
        for first, last, primary, *_ in ranges:
            # A node that does not know its own name leaves it out.
            address = ((primary[0] or b"").decode() or host, primary[1])
            if address not in primaries:
                primaries.append(address)
            slots[first : last + 1] = [primaries.index(address)] * (last + 1 - first)
        if not primaries:
            raise EngineUnavailable(f"Expected a cluster at {server.where}, but got one without slots.")
        self._nodes = primaries
        return Layout([self._server(*address) for address in primaries], slots)

    async def _ask_sentinels(self) -> Server:
        target = self._target
        impatience = {
            "socket_timeout": SENTINEL_TIMEOUT,
            "socket_connect_timeout": SENTINEL_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
        }
        sentinel = Sentinel(target.sentinels, sentinel_kwargs=impatience)  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                host, port = await sentinel.discover_master(target.service)
        except (RedisError, OSError) as exc:
            raise EngineUnavailable(
                f"Expected a primary from {target.where}, but got: {str(exc) or 'no answer'}"
            ) from exc
        finally:
            for each in sentinel.sentinels:
                await each.aclose()
        return self._server(host, port)


def _ignore_message(topic: bytes, payload: bytes) -> None:
    """Nothing was subscribed to."""


def _ignore_request(request: Request) -> None:
    """Nothing was asked for that moves."""
