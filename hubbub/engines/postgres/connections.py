"""The connections to the database: one that listens and reads, and a pool for everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from secrets import token_hex
from typing import Any, TypeAlias, TypeVar

import asyncpg

from hubbub.engines.base import ANSWER_TIMEOUT, CONNECT_TIMEOUT
from hubbub.engines.postgres.address import Address
from hubbub.engines.postgres.schema import Connection, Schema
from hubbub.exceptions import EngineUnavailable

T = TypeVar("T")
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

#: Seconds that closing the connections may take.
CLOSE_TIMEOUT = 1.0

#: Errors of the database, of the network, and of asyncpg when the server does not behave as expected.
ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

#: Classes of SQLSTATE for wrong values: data exceptions, and values that exceed a limit of the server.
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_REFUSED = ("22", "54")

#: Begins the payload of notifications that name no channel; no channel's name begins with it.
_PROBE = "\x02"


class Connections:
    """All connections of one engine.

    :param on_notify: called with the channel of each notification.
    :param on_terminated: called when the connection that listens has ended.
    """

    def __init__(
        self,
        address: Address,
        schema: Schema,
        on_notify: Callable[[str], None],
        on_terminated: Callable[[], None],
    ) -> None:
        self._address = address
        self._schema = schema
        self._on_channel = on_notify
        self._on_terminated = on_terminated
        self._listening: Connection | None = None
        self._pool: Pool | None = None
        # The payload of probes, and set when one has been received.
        self._token = ""
        self._received = asyncio.Event()

    # Lifecycle

    async def open(self) -> str:
        """Open all connections, and install the schema.

        :return: the id of the schema's installation, see :meth:`Schema.install`.
        :raises EngineUnavailable: that is not possible now; nothing is open then.
        """
        address = self._address
        self._token = _PROBE + token_hex(8)
        self._received.clear()
        is_connected = False
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                listening = await asyncpg.connect(address.dsn, **address.listen, **address.options)
                self._listening = listening
                installation = await self._schema.install(listening)
                if address.notify:
                    await listening.add_listener(self._schema.namespace, self._on_notify)
                listening.add_termination_listener(lambda _: self._on_terminated())
                self._pool = asyncpg.create_pool(
                    address.dsn, min_size=1, max_size=address.pool_size, reset=_keep, **address.options
                )
                await self._pool
                is_connected = True
                if address.notify:
                    # Without parameters, which would need a prepared statement.
                    await self._pool.execute(f"NOTIFY {self._schema.quoted}, '{self._token}'")
                    await self._received.wait()
            return installation
        except BaseException as exc:
            self.terminate()
            if isinstance(exc, EngineUnavailable):
                raise
            if isinstance(exc, TimeoutError) and is_connected:
                raise address.unavailable(
                    "LISTEN does not work there. If this is a pooler that gives a connection for a "
                    "transaction only, add '?listen=host:port' to the URL, with PostgreSQL's own address."
                ) from None
            if isinstance(exc, asyncpg.ClientConfigurationError | ValueError):
                # Their messages may repeat the URL.
                raise address.unavailable("the URL has a part that asyncpg does not understand.") from None
            if isinstance(exc, ERRORS):
                raise address.unavailable(describe(exc)) from exc
            raise

    async def close(self) -> None:
        """Close all connections, with a message to the server if it answers in time."""
        with suppress(*ERRORS):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if self._listening is not None:
                    await self._listening.close()
                if self._pool is not None:
                    await self._pool.close()
        self.terminate()

    def terminate(self) -> None:
        """Close all connections without a message to the server, which may not answer."""
        if self._pool is not None:
            self._pool.terminate()
        if self._listening is not None:
            self._listening.terminate()
        self._pool = self._listening = None

    # Use

    @property
    def listening(self) -> Connection:
        """The connection that listens and reads."""
        assert self._listening is not None
        return self._listening

    async def run(self, request: Callable[[Any], Awaitable[T]]) -> T:
        """Call ``request`` with a connection of the pool."""
        assert self._pool is not None
        async with self._pool.acquire(timeout=ANSWER_TIMEOUT) as connection, self.unit(connection):
            return await request(connection)

    def unit(self, connection: Any) -> AbstractAsyncContextManager[object]:
        """Return the block in which a statement is prepared and run.

        Behind a pooler it is a transaction: each transaction may get another connection to the server.
        """
        if self._address.keeps_statements:
            return nullcontext()
        return connection.transaction()  # type: ignore[no-any-return]

    # Notifications

    def expect_probe(self) -> str:
        """Return the payload of the next probe, which is a notification to ourselves."""
        self._received.clear()
        return self._token

    async def has_received_probe(self) -> bool:
        """Wait for the probe, and return whether it came in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._received.wait()
        return self._received.is_set()

    def _on_notify(self, connection: object, pid: int, name: str, payload: object) -> None:
        if payload == self._token:
            self._received.set()
        elif isinstance(payload, str):
            self._on_channel(payload)


async def _keep(connection: object) -> None:
    """Reset nothing when a connection returns to the pool: none of our settings outlasts a transaction.

    A reset would take a round trip.
    """


# Errors


def refusal(exc: BaseException) -> ValueError | None:
    """Return the error to raise if ``exc`` is the fault of an argument, and not of the database."""
    if isinstance(exc, asyncpg.PostgresError):
        is_refused = (exc.sqlstate or "")[:2] in _REFUSED
    else:
        # asyncpg cannot encode the argument. It has no public class of its own for that.
        is_refused = (
            isinstance(exc, asyncpg.InterfaceError)
            and isinstance(exc, ValueError)
            and not isinstance(exc, asyncpg.ClientConfigurationError)
        )
    return ValueError(f"PostgreSQL refuses an argument: {describe(exc)}") if is_refused else None


def describe(exc: BaseException) -> str:
    """Return ``exc`` as a phrase for people."""
    if isinstance(exc, TimeoutError) and not str(exc):
        return f"no answer within {ANSWER_TIMEOUT:g} s."
    return str(exc) or type(exc).__name__
