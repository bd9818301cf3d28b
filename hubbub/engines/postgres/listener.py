"""The listener: keeps the node connected to the database, and hands over publications."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

from hubbub.engines.base import ANSWER_TIMEOUT, Sink, hand_over, notify
from hubbub.engines.postgres.address import Address
from hubbub.engines.postgres.connections import ERRORS, Connections, describe
from hubbub.engines.postgres.declarations import Declarations
from hubbub.engines.postgres.reader import Moved, Reader
from hubbub.engines.postgres.requests import Requests
from hubbub.engines.postgres.schema import Schema
from hubbub.engines.reconnect import Reconnector
from hubbub.exceptions import EngineUnavailable

logger = logging.getLogger(__name__)

#: Seconds between two polls of the database: beside notifications, and in their place.
POLL, POLL_ALONE = 1.0, 0.05

#: Seconds between two probes, which are notifications to ourselves.
PROBE_EVERY = 10.0


class Listener:
    """Listens for notifications, polls, reads, and reconnects.

    :param check_started: raises :class:`~hubbub.exceptions.HubNotRunning` unless the engine has been started.
    """

    def __init__(self, address: Address, schema: Schema, check_started: Callable[[], object]) -> None:
        self._address = address
        self._schema = schema
        self._sink: Sink | None = None
        # The installation of the schema that was read from.
        self._installation = ""
        self.reader = Reader(schema)
        self._connections = Connections(address, schema, self.reader.mark_dirty, self.reader.poll_soon)
        self._reconnector = Reconnector(
            f"PostgreSQL at {address}", self._connect, self._listen, self._restore
        )
        self.requests = Requests(
            address, self._connections, self._reconnector, check_started, self.reader.poll_soon
        )
        self.declarations = Declarations(schema, self.requests, self.reader)

    # Lifecycle

    async def start(self, sink: Sink) -> None:
        """Connect, and hand over publications to ``sink`` from now on.

        :raises EngineUnavailable: there is no database that can be used.
        """
        self._sink = sink
        await self._reconnector.start(sink)

    async def stop(self) -> None:
        """Hand over nothing more, and cancel all requests."""
        # Both are cancelled before anything is awaited: neither may report an outage because of the other.
        self.requests.cancel()
        await self._reconnector.stop()
        await self.requests.wait_cancelled()

    async def close(self) -> None:
        """Close the connections; after :meth:`stop`."""
        await self._connections.close()

    # Reconnecting

    async def _connect(self) -> None:
        installation = await self._connections.open()
        if installation != self._installation:
            # The schema was dropped and made again: nothing in it has been seen.
            self._installation = installation
            self.reader.forget()
        self.reader.mark_all_dirty()

    async def _restore(self) -> None:
        try:
            await self.declarations.declare_lost()
        except Exception:
            self._connections.terminate()
            raise

    async def _listen(self) -> str:
        """Hand over publications until the connection is lost; return the reason."""
        try:
            await self._hand_over()
        except ERRORS as exc:
            self._connections.terminate()
            return describe(exc)
        except Exception:
            self._connections.terminate()
            raise

    # Reading

    async def _hand_over(self) -> NoReturn:
        connections, reader, sink = self._connections, self.reader, self._sink
        assert sink is not None
        loop = asyncio.get_running_loop()
        interval = POLL if self._address.notify else POLL_ALONE
        polled = probed = loop.time()
        probe: asyncio.Task[bool] | None = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, polled + interval - loop.time())):
                    await reader.wake.wait()
            reader.wake.clear()
            if loop.time() >= polled + interval or reader.is_poll_due:
                async with asyncio.timeout(ANSWER_TIMEOUT), connections.unit(connections.listening):
                    moved = await reader.poll(connections.listening)
                polled = loop.time()
                await self._on_moved(moved, sink)
            async with asyncio.timeout(ANSWER_TIMEOUT), connections.unit(connections.listening):
                await reader.read(connections.listening, partial(hand_over, sink))
            if probe is not None and probe.done():
                if not probe.result():
                    raise TimeoutError("notifications do not arrive any more.")
                probe = None
            if self._address.notify and probe is None and loop.time() >= probed + PROBE_EVERY:
                probed = loop.time()
                probe = self.requests.spawn(self._receives_notifications())

    async def _on_moved(self, moved: Moved, sink: Sink) -> None:
        if moved.is_set_back:
            # Only of a server that has lost commits: after a crash, or restored from a backup.
            logger.warning(
                "PostgreSQL at %s was set back to an earlier state; checking all channels.", self._address
            )
        if moved.is_undeclared:
            logger.warning("PostgreSQL at %s has lost histories; declaring them again.", self._address)
            await self.declarations.declare_lost()
        if any(moved):
            notify(sink.on_reconnect)

    async def _receives_notifications(self) -> bool:
        """Send a probe, and return whether it was received.

        It is sent through another connection: a pooler that gives out connections for one transaction would
        receive our own notifications, but not pass on those of others.
        """
        token = self._connections.expect_probe()
        try:
            await self.requests.ask(
                lambda connection: connection.execute(
                    "SELECT pg_notify($1, $2)", self._schema.namespace, token
                )
            )
        except EngineUnavailable:
            # All connections of the pool may be busy. That says nothing about the one that listens.
            return True
        return await self._connections.has_received_probe()
