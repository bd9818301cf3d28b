"""The topology: which servers hold the data at the moment.

The URL names one server, or sentinels that know it, or nodes of a cluster that know one another.
"""

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

from hubbub.engines.base import CONNECT_TIMEOUT
from hubbub.engines.redis.address import Address
from hubbub.engines.redis.connection import RedisConnection, Request
from hubbub.exceptions import EngineUnavailable

logger = logging.getLogger(__name__)

#: Seconds until a sentinel must answer; then the next one is asked.
SENTINEL_TIMEOUT = 1.0

#: The number of slots into which a cluster divides its keys.
SLOTS = 16384


class Server(NamedTuple):
    """One server.

    :param driver: the class of redis-py's connections.
    :param options: the parameters of ``driver``.
    :param where: host and port, for messages.
    """

    driver: type[AbstractConnection]
    options: dict[str, Any]
    where: str


class Topology(NamedTuple):
    """The servers that hold all the data.

    :param servers: the primaries.
    :param slots: the index of the primary of each of a cluster's slots; empty without a cluster.
    """

    servers: Sequence[Server]
    slots: Sequence[int] = ()


class Locator:
    """Finds the servers of an address, which may be others each time."""

    def __init__(self, address: Address) -> None:
        self._address = address
        # The primaries of the cluster, as they were found last.
        self._nodes: Sequence[tuple[str, int]] = ()

    async def locate(self) -> Topology:
        """Return the present topology.

        :raises EngineUnavailable: it cannot be found out.
        """
        address = self._address
        if address.sentinels:
            return Topology([await self._ask_sentinels()])
        if not address.nodes:
            return Topology([Server(address.driver, address.options, address.where)])
        error = ""
        for host, port in dict.fromkeys((*self._nodes, *address.nodes)):
            try:
                return await self._ask_node(host, port)
            except EngineUnavailable as exc:
                error = str(exc)
        raise EngineUnavailable(f"Could not find the servers of {address}. {error}")

    def _server(self, host: str, port: int) -> Server:
        options = self._address.options | {"host": host, "port": port}
        return Server(self._address.driver, options, f"{host}:{port}")

    async def _ask_node(self, host: str, port: int) -> Topology:
        """Return the topology of the cluster as one of its nodes knows it."""
        server = self._server(host, port)
        driver = server.driver(**server.options)
        connection = RedisConnection(driver, server.where, _ignore_message, _ignore_request, logger.debug)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.connect()
                ranges = await connection.ask("CLUSTER", "SLOTS")
        except TimeoutError:
            raise EngineUnavailable(
                f"Redis at {server.where} gave no answer within {CONNECT_TIMEOUT:g} s."
            ) from None
        finally:
            connection.close("it was only needed for one question")
            await connection.wait_closed()
        primaries: list[tuple[str, int]] = []
        slots = [0] * SLOTS
        for first, last, primary, *_ in ranges:
            # A node that does not know its own name leaves it out.
            found = ((primary[0] or b"").decode() or host, primary[1])
            if found not in primaries:
                primaries.append(found)
            slots[first : last + 1] = [primaries.index(found)] * (last + 1 - first)
        if not primaries:
            raise EngineUnavailable(f"The cluster of the node at {server.where} has no slots yet.")
        self._nodes = primaries
        return Topology([self._server(*each) for each in primaries], slots)

    async def _ask_sentinels(self) -> Server:
        address = self._address
        timeouts = {
            "socket_timeout": SENTINEL_TIMEOUT,
            "socket_connect_timeout": SENTINEL_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
        }
        sentinel = Sentinel(address.sentinels, sentinel_kwargs=timeouts)  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                host, port = await sentinel.discover_master(address.service)
        except (RedisError, OSError) as exc:
            reason = str(exc).rstrip(".") or "no answer"
            raise EngineUnavailable(
                f"Could not ask the sentinels at {address.where} for the primary of {address.service!r} "
                f"({reason})."
            ) from exc
        finally:
            for each in sentinel.sentinels:
                await each.aclose()
        return self._server(host, port)


def _ignore_message(topic: bytes, payload: bytes) -> None:
    """Ignore a message: the connection subscribes to nothing."""


def _ignore_request(request: Request) -> None:
    """Ignore a request that was moved: CLUSTER SLOTS has no key."""
