"""The engine for ``postgresql://``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import START, Position, Publication
from hubbub.engines.base import ANSWER_TIMEOUT, Engine, PresenceChange, Sink, Top, batched
from hubbub.engines.diagnostics import Diagnosis
from hubbub.engines.postgres import statements
from hubbub.engines.postgres.address import Address
from hubbub.engines.postgres.batching import Batching, Item
from hubbub.engines.postgres.diagnostics import inspect
from hubbub.engines.postgres.listener import Listener
from hubbub.engines.postgres.pruning import Pruner
from hubbub.engines.postgres.requests import OPEN_TRANSACTION
from hubbub.engines.postgres.schema import Schema
from hubbub.engines.postgres.statements import as_arguments, as_publication, as_top, milliseconds
from hubbub.engines.postgres.transactions import append_in

#: Channels whose tops are read by one statement.
TOPS = 1000


class PostgresEngine(Engine):
    """Keeps streams and presence in one schema of a PostgreSQL database, named after the namespace.

    Histories and leases expire by the server's clock.

    :param url: as libpq takes it, ``postgresql://user:password@host:5432/database``. Four parameters are
        ours: ``pool_size=10``, the number of connections besides the one that listens;
        ``statement_cache_size=0`` for a pooler that cannot keep prepared statements; ``listen=host:port``,
        the address to listen at, if the URL is that of a pooler that gives a connection for a transaction
        only; ``notify=off`` to use no notifications, but to poll for publications every 50 ms.
    :param namespace: the name of the schema.
    :raises InvalidURL: the URL cannot be understood, or has unknown parameters.
    :raises ValueError: no schema can have the name ``namespace``.
    """

    across_processes: ClassVar[bool] = True

    def __init__(self, url: str, namespace: str = "hubbub") -> None:
        super().__init__(url, namespace)
        self._address = Address(url)
        self._schema = Schema(namespace, self._address)
        sql = self._schema.sql
        self._publish_batch = sql(statements.PUBLISH).replace(
            "{notify}", "on" if self._address.notify else "off"
        )
        self._read_tops = sql(statements.TOPS)
        self._read_forwards = sql(statements.HISTORY)
        self._read_backwards = sql(statements.HISTORY_BACKWARDS)
        self._remove_history = sql(statements.REMOVE_HISTORY)
        self._update_presence = sql(statements.UPDATE_PRESENCE)
        self._expire_presence = sql(statements.EXPIRE_PRESENCE)
        self._read_presence = sql(statements.PRESENCE)
        self._prepare()

    def _prepare(self) -> None:
        # At every start, because events belong to the event loop on which they are first used.
        self._listener = Listener(self._address, self._schema, self._started)
        self._reader = self._listener.reader
        self._requests = self._listener.requests
        self._batching = Batching(self._accept, self._requests.locks, self._requests.spawn)

    # Lifecycle

    async def start(self, sink: Sink) -> None:
        self._prepare()
        self._sink = sink
        try:
            await self._listener.start(sink)
        except BaseException:
            self._sink = None
            raise
        self._requests.spawn(Pruner(self._schema, self._requests, self._reader).run())

    async def stop(self) -> None:
        self._sink = None
        await self._listener.stop()
        self._batching.close(self._address.unavailable("the engine has been stopped."))
        await self._listener.close()

    # Publishing

    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        self._started()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await self._batching.put(publication, history, idempotency_key)
        except TimeoutError:
            raise self._requests.late(OPEN_TRANSACTION) from None

    async def publish_in(
        self, publication: Publication, history: History | None, idempotency_key: str | None, using: object
    ) -> Position:
        """Publish as a part of a transaction: with its commit, and never without.

        Waits for other open transactions that have published to the channel, as long as the connection's own
        settings allow. Errors of the driver are not changed. Beyond READ COMMITTED one of them may be a
        serialization failure: another transaction has published to the channel since this one began.

        :param using: a connection of asyncpg, an ``AsyncConnection`` of psycopg, or an ``AsyncSession`` or
            ``AsyncConnection`` of SQLAlchemy with either driver, in a transaction.
        :raises TypeError: ``using`` is something else.
        """
        offset, epoch = await append_in(
            using,
            self._schema.quoted,
            as_arguments(publication, history, idempotency_key),
            is_silent=not self._address.notify,
        )
        return Position(offset, epoch)

    async def _accept(self, channel: str, batch: Sequence[Item], patience: float) -> Sequence[Position]:
        columns = zip(*(as_arguments(*item[:3])[1:] for item in batch), strict=True)
        rows = await self._requests.ask(
            lambda connection: connection.fetch(
                self._publish_batch, milliseconds(patience), channel, *columns
            )
        )
        if not self._address.notify:
            # Publications of other nodes are found by the next poll, but these need not wait for it.
            self._reader.mark_dirty(channel)
        return [Position(row["offset"], row["epoch"]) for row in rows]

    # Subscribing

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        ask = self._requests.ask
        stream = await ask(lambda connection: connection.fetchrow(self._read_tops, [channel]))
        if history is not None and (stream["size"], stream["ttl"]) != (history.size, history.ttl):
            await self._listener.declarations.declare(channel, history)
            stream = await ask(lambda connection: connection.fetchrow(self._read_tops, [channel]))
        # A publication that was committed after this read may have been announced before the channel was
        # subscribed to. So the channel is read at once.
        self._reader.subscribe(channel, history, stream["sequence"] or 0)
        return as_top(stream)

    async def unsubscribe(self, channel: str) -> None:
        self._started()
        self._reader.unsubscribe(channel)

    # History

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        epoch, after, before = "", 0, 2**62
        if since is not None:
            epoch = since.epoch
            if reverse:
                before = since.offset
            else:
                after = since.offset
        rows = await self._requests.ask(
            lambda connection: connection.fetch(
                self._read_backwards if reverse else self._read_forwards, channel, epoch, after, before, limit
            )
        )
        if not rows:
            return HistoryPage((), START)
        position = Position(rows[0]["top"], rows[0]["top_epoch"])
        return HistoryPage([as_publication(row) for row in rows if row["sequence"] is not None], position)

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        tops: list[Top] = []
        for some in batched(channels, TOPS):
            rows = await self._requests.ask(
                lambda connection, some=some: connection.fetch(self._read_tops, some)  # type: ignore[misc]
            )
            tops += map(as_top, rows)
        return tops

    async def remove_history(self, channel: str) -> None:
        await self._requests.ask_with_lock(
            lambda patience: self._requests.ask(
                lambda connection: connection.execute(self._remove_history, milliseconds(patience), channel)
            )
        )

    # Presence

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        channels, connections, data = zip(*changes, strict=True) if changes else ((), (), ())
        exists: bool = await self._requests.ask(
            lambda connection: connection.fetchval(
                self._update_presence, lease, ttl, begin, channels, connections, data
            )
        )
        return exists

    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        removed = await self._requests.ask(lambda connection: connection.fetch(self._expire_presence, grace))
        return [PresenceChange(row["channel"], row["connection"], None) for row in removed]

    async def presence(self, channel: str) -> Mapping[str, bytes]:
        entries = await self._requests.ask(lambda connection: connection.fetch(self._read_presence, channel))
        return {row["connection"]: row["data"] for row in entries}

    # Diagnostics

    async def inspect(self) -> Sequence[Diagnosis]:
        return await self._requests.ask(lambda connection: inspect(connection, self.namespace, self._address))
