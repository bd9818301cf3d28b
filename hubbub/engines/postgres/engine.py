"""The engine for ``postgresql://``: listens, reads, publishes, and connects again."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from random import random
from secrets import token_hex
from typing import Any, ClassVar, TypeAlias, TypeVar

import asyncpg

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import START, Position, Publication
from hubbub.engines.base import Diagnosis, Engine, PresenceChange, Sink, Top, hand_over
from hubbub.engines.postgres import statements
from hubbub.engines.postgres.address import DEADLINE, Address
from hubbub.engines.postgres.batching import Batching, Item
from hubbub.engines.postgres.diagnostics import inspect
from hubbub.engines.postgres.errors import ERRORS, is_refused, refused, why
from hubbub.engines.postgres.locks import Blocked, Locks
from hubbub.engines.postgres.reader import Moved, Reader
from hubbub.engines.postgres.rows import as_arguments, as_publication, as_top
from hubbub.engines.postgres.schema import HANDOVER, Connection, Schema
from hubbub.engines.postgres.transactions import append_in
from hubbub.engines.reconnect import Backoff
from hubbub.exceptions import EngineUnavailable, HubNotRunning

logger = logging.getLogger("hubbub.postgres")

T = TypeVar("T")
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

#: Seconds between two looks at the database that no notification has asked for: beside notifications, and in
#: their place.
POLL, POLL_ALONE = 1.0, 0.05

#: Seconds between two notifications by which a node finds out whether it hears.
HEARING_CHECK = 10.0

#: Seconds that saying goodbye may take.
CLOSE = 1.0

#: Seconds between two rounds of removing what has expired, rows removed at once, and seconds between two
#: rounds of forgetting streams.
PRUNE, PRUNE_LIMIT, PRUNE_STREAMS = 10.0, 1000, 600.0

#: Channels of which is asked at once where they stand.
TOPS = 1000

_OPEN_TRANSACTION = "Is a transaction that published to the channel still open?"

#: Begins notifications that are not about a channel; no channel's name begins with it.
_HEARING = "\x02"


class PostgresEngine(Engine):
    """One schema of a PostgreSQL database, named after the namespace.

    :param url: as libpq takes it, ``postgresql://user:password@host:5432/database``. Four parameters are
        ours: ``pool_size=10``, connections besides the one that listens; ``statement_cache_size=0`` for a
        pooler that cannot keep prepared statements; ``listen=host:port`` where to listen, if the URL is that
        of a pooler that gives a connection for a transaction only; ``notify=off`` to use no notifications,
        but to look for publications every 50 ms.
    :raises InvalidURL: the URL is none, or has parameters that are not known.
    """

    across_processes: ClassVar[bool] = True

    def __init__(self, url: str, namespace: str = "hubbub") -> None:
        super().__init__(url, namespace)
        self._address = Address(url)
        self._schema = Schema(namespace, self._address)
        sql = self._schema.sql
        notify = "on" if self._address.notify else "off"
        self._publish_batch = sql(statements.PUBLISH).replace("{notify}", notify)
        self._declare_one = sql(statements.DECLARE)
        self._undeclared = sql(statements.UNDECLARED)
        self._tops = sql(statements.TOPS)
        self._forwards = sql(statements.HISTORY)
        self._backwards = sql(statements.HISTORY_BACKWARDS)

        self._sink: Sink | None = None
        self._listening: Connection | None = None
        self._pool: Pool | None = None
        # Set while a connection listens. Publishing waits for it: who cannot hear does not speak.
        self._hearing = asyncio.Event()
        # Why it does not, as who asks meanwhile is told.
        self._trouble = ""
        self._heard = asyncio.Event()
        # What is heard then.
        self._token = ""
        self._installation = ""
        self._is_suspect = False
        self._reader = Reader(self._schema)
        self._locks = Locks(self._address.pool_size)
        self._queues = Batching(self._accept, self._locks, self._spawn)
        self._tasks: set[asyncio.Task[Any]] = set()

    # Life

    async def start(self, sink: Sink) -> None:
        # Anew, for they belong to the event loop on which they are used.
        self._hearing, self._heard = asyncio.Event(), asyncio.Event()
        self._reader = Reader(self._schema)
        self._locks = Locks(self._address.pool_size)
        self._queues = Batching(self._accept, self._locks, self._spawn)
        self._sink = sink
        try:
            self._installation = await self._connect()
        except BaseException:
            self._sink = None
            raise
        self._hearing.set()
        self._spawn(self._run())
        self._spawn(self._prune())

    async def stop(self) -> None:
        self._sink = None
        self._hearing.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=DEADLINE)
        self._queues.close(self._address.unavailable("the engine has been stopped."))
        with suppress(*ERRORS):
            async with asyncio.timeout(CLOSE):
                if self._listening is not None:
                    await self._listening.close()
                if self._pool is not None:
                    await self._pool.close()
        self._disconnect()

    # Publishing

    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        self._started()
        try:
            async with asyncio.timeout(DEADLINE):
                return await self._queues.put(publication, history, idempotency_key)
        except TimeoutError:
            raise self._late(_OPEN_TRANSACTION) from None

    async def publish_in(
        self, publication: Publication, history: History | None, idempotency_key: str | None, using: object
    ) -> Position:
        """Publish as a part of the transaction that ``using`` is in: with its commit, and never without.

        Waits for other transactions that have published to the channel and are still open, as long as the
        connection's own settings let it. What the driver raises is not changed. Beyond READ COMMITTED that
        may be a serialization failure: somebody else has published to the channel since this one began.

        :param using: a connection of asyncpg, an ``AsyncConnection`` of psycopg, or an ``AsyncSession`` or
            ``AsyncConnection`` of SQLAlchemy with either driver.
        :raises TypeError: it is something else.
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
        rows = await self._ask(
            lambda connection: connection.fetch(
                self._publish_batch, _milliseconds(patience), channel, *columns
            )
        )
        if not self._address.notify:
            # What others have published is found later, but this much is known.
            self._reader.stir(channel)
        return [Position(row["offset"], row["epoch"]) for row in rows]

    # Subscribing

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        stream = await self._ask(lambda connection: connection.fetchrow(self._tops, [channel]))
        if history is not None and (stream["size"], stream["ttl"]) != (history.size, history.ttl):
            await self._locking(partial(self._declare, channel, history))
            stream = await self._ask(lambda connection: connection.fetchrow(self._tops, [channel]))
        # What was committed since this was read, and announced before it came, is yet to be read.
        self._reader.subscribe(channel, history, stream["sequence"] or 0)
        return as_top(stream)

    async def _declare(self, channel: str, history: History, patience: float) -> None:
        await self._ask(
            lambda connection: connection.execute(
                self._declare_one, _milliseconds(patience), channel, history.size, history.ttl
            )
        )

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
        rows = await self._ask(
            lambda connection: connection.fetch(
                self._backwards if reverse else self._forwards, channel, epoch, after, before, limit
            )
        )
        if not rows:
            return HistoryPage((), START)
        position = Position(rows[0]["top"], rows[0]["top_epoch"])
        return HistoryPage([as_publication(row) for row in rows if row["sequence"] is not None], position)

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        tops: list[Top] = []
        for start in range(0, len(channels), TOPS):
            some = channels[start : start + TOPS]
            rows = await self._ask(lambda connection, some=some: connection.fetch(self._tops, some))  # type: ignore[misc]
            tops += map(as_top, rows)
        return tops

    async def remove_history(self, channel: str) -> None:
        remove = self._schema.sql(statements.REMOVE_HISTORY)
        await self._locking(
            lambda patience: self._ask(
                lambda connection: connection.execute(remove, _milliseconds(patience), channel)
            )
        )

    # Presence

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        update = self._schema.sql("SELECT {schema}.update_presence($1, $2, $3, $4, $5, $6)")
        channels, connections, data = zip(*changes, strict=True) if changes else ((), (), ())
        is_there: bool = await self._ask(
            lambda connection: connection.fetchval(update, lease, ttl, begin, channels, connections, data)
        )
        return is_there

    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        expire = self._schema.sql("SELECT * FROM {schema}.expire_presence($1)")
        removed = await self._ask(lambda connection: connection.fetch(expire, grace))
        return [PresenceChange(row["channel"], row["connection"], None) for row in removed]

    async def presence(self, channel: str) -> Mapping[str, bytes]:
        find = self._schema.sql("SELECT connection, data FROM {schema}.presence WHERE channel = $1")
        found = await self._ask(lambda connection: connection.fetch(find, channel))
        return {row["connection"]: row["data"] for row in found}

    async def inspect(self) -> Sequence[Diagnosis]:
        return await self._ask(lambda connection: inspect(connection, self.namespace, self._address))

    # Inside: asking the database

    def _started(self) -> Sink:
        if self._sink is None:
            raise HubNotRunning("The PostgreSQL engine has not been started.")
        return self._sink

    def _late(self, hint: str) -> EngineUnavailable:
        if not self._hearing.is_set():
            return EngineUnavailable(self._trouble)
        return self._address.unavailable(f"no answer within {DEADLINE:g} s. {hint}")

    def _suspect(self) -> None:
        """Have the reading task find out at once whether all is well."""
        self._is_suspect = True
        self._reader.woken.set()

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _locking(self, question: Callable[[float], Awaitable[T]]) -> T:
        """The answer to ``question``, which locks a channel. It is called with the seconds that it may wait
        for that, and raises :class:`Blocked` if they are not enough.

        :raises EngineUnavailable: there is none within the deadline.
        """
        self._started()
        try:
            async with asyncio.timeout(DEADLINE):
                with self._locks.attempts() as attempts:
                    while True:
                        with suppress(Blocked):
                            async with attempts.turn() as patience:
                                return await question(patience)
        except TimeoutError:
            raise self._late(_OPEN_TRANSACTION) from None

    async def _ask(self, question: Callable[[Any], Awaitable[T]]) -> T:
        """The answer to ``question``, which is called with a connection of the pool.

        :raises EngineUnavailable: there is none within the deadline.
        :raises ValueError: PostgreSQL cannot store what is asked.
        :raises Blocked: the time that the question sets for a lock was not enough.
        """
        self._started()
        task = self._spawn(self._asked(question))
        try:
            done, _ = await asyncio.wait({task}, timeout=DEADLINE)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            # Not waited for: giving up may itself take long when the server does not answer.
            task.cancel()
            raise self._late("Are all connections of the pool busy?")
        if task.cancelled():
            raise self._address.unavailable("the engine has been stopped.")
        exc = task.exception()
        if exc is None:
            return task.result()  # type: ignore[no-any-return]
        if isinstance(exc, asyncpg.LockNotAvailableError):
            raise Blocked(str(self._address.unavailable(why(exc)))) from exc
        if is_refused(exc):
            raise refused(exc) from exc
        if isinstance(exc, ERRORS):
            # If the tables are gone, the reading task sees it too, and heals it.
            self._suspect()
            raise self._address.unavailable(why(exc)) from exc
        raise exc

    async def _asked(self, question: Callable[[Any], Awaitable[T]]) -> T:
        await self._hearing.wait()
        assert self._pool is not None
        async with self._pool.acquire(timeout=DEADLINE) as connection, self._unit(connection):
            return await question(connection)

    def _unit(self, connection: Any) -> AbstractAsyncContextManager[object]:
        """What a statement is prepared and run in. A pooler may give each transaction another connection."""
        if self._address.keeps_statements:
            return nullcontext()
        return connection.transaction()  # type: ignore[no-any-return]

    # Inside: listening and reading

    async def _run(self) -> None:
        """Read what comes, and whenever that fails, connect again."""
        is_back = False
        while True:
            try:
                if is_back:
                    await self._redeclare()
                    self._started().on_reconnect()
                await self._listen()
            except ERRORS as exc:
                self._trouble = f"Lost PostgreSQL at {self._address}: {why(exc)}"
                logger.warning("%s", self._trouble)
            except Exception as exc:
                self._trouble = f"Reading from PostgreSQL at {self._address} failed: {why(exc)}"
                logger.exception("%s", self._trouble)
            self._hearing.clear()
            self._disconnect()
            try:
                self._started().on_disconnect(self._trouble)
            except Exception:
                # Without this task, nothing would ever be heard again.
                logger.exception("Telling that PostgreSQL at %s is away failed.", self._address)
            await self._reconnect()
            is_back = True

    async def _listen(self) -> None:
        listening = self._listening
        assert listening is not None
        loop = asyncio.get_running_loop()
        interval = POLL if self._address.notify else POLL_ALONE
        polled = tested = loop.time()
        test: asyncio.Task[bool] | None = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, polled + interval - loop.time())):
                    await self._reader.woken.wait()
            self._reader.woken.clear()
            if loop.time() >= polled + interval or self._is_suspect:
                self._is_suspect = False
                async with asyncio.timeout(DEADLINE), self._unit(listening):
                    moved = await self._reader.poll(listening)
                polled = loop.time()
                await self._moved(moved)
            async with asyncio.timeout(DEADLINE), self._unit(listening):
                await self._reader.read(listening, partial(hand_over, self._started()))
            if test is not None and test.done():
                if not test.result():
                    raise TimeoutError("notifications do not arrive any more.")
                test = None
            if self._address.notify and test is None and loop.time() >= tested + HEARING_CHECK:
                tested = loop.time()
                test = self._spawn(self._test_hearing())

    async def _moved(self, moved: Moved) -> None:
        if moved.is_set_back:
            # Only a server that has forgotten what it had committed: after a crash, or from a backup.
            logger.warning("PostgreSQL at %s was set back to an earlier state.", self._address)
        if moved.is_undeclared:
            logger.warning("PostgreSQL at %s has lost histories; they are declared again.", self._address)
            await self._redeclare()
        if any(moved):
            self._started().on_reconnect()

    async def _redeclare(self) -> None:
        """Declare again the histories that the database has lost. One that is blocked, or fails, is left to
        the next poll that finds it missing."""
        histories = self._reader.declared
        channels = list(histories)
        for start in range(0, len(channels), TOPS):
            some = channels[start : start + TOPS]
            try:
                lost = await self._ask(
                    lambda connection, some=some: connection.fetch(self._undeclared, some)  # type: ignore[misc]
                )
            except EngineUnavailable as exc:
                logger.debug("Could not find out which histories are lost: %s", exc)
                return
            await asyncio.gather(*(self._declare_again(row["channel"], histories) for row in lost))

    async def _declare_again(self, channel: str, histories: Mapping[str, History]) -> None:
        try:
            with self._locks.attempts() as attempts:
                async with attempts.turn() as patience:
                    await self._declare(channel, histories[channel], patience)
        except EngineUnavailable as exc:
            logger.debug("Could not declare the history of %r again: %s", channel, exc)

    def _on_notify(self, connection: object, pid: int, name: str, payload: object) -> None:
        if payload == self._token:
            self._heard.set()
        elif isinstance(payload, str):
            self._reader.stir(payload)

    async def _test_hearing(self) -> bool:
        """Whether what others publish is heard. Asked through another connection: a pooler that
        gives out connections for one transaction would hear, but not tell us."""
        self._heard.clear()
        try:
            await self._ask(
                lambda connection: connection.execute("SELECT pg_notify($1, $2)", self.namespace, self._token)
            )
        except EngineUnavailable:
            # All connections of the pool may be busy. That says nothing about this one.
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE):
                await self._heard.wait()
        return self._heard.is_set()

    # Inside: connecting

    async def _reconnect(self) -> None:
        backoff = Backoff()
        while True:
            await backoff.wait()
            try:
                installation = await self._connect()
            except EngineUnavailable as exc:
                self._trouble = str(exc)
                logger.warning("%s", exc)
            except Exception as exc:
                # Whatever it is, giving up would be worse.
                self._trouble = str(self._address.unavailable(why(exc)))
                logger.exception("Connecting to PostgreSQL at %s failed.", self._address)
            else:
                break
        logger.info("PostgreSQL at %s is back.", self._address)
        if installation != self._installation:
            # The schema has been made anew. All that is in it is new to us.
            self._installation = installation
            self._reader.forget()
        self._reader.stir_all()
        self._hearing.set()

    async def _connect(self) -> str:
        """Make all connections. Returns which installation of the schema they found.

        :raises EngineUnavailable: that does not work.
        """
        address = self._address
        self._token = _HEARING + token_hex(8)
        self._heard.clear()
        is_connected = False
        try:
            async with asyncio.timeout(DEADLINE):
                listening = await asyncpg.connect(address.dsn, **address.listen, **address.options)
                self._listening = listening
                installation = await self._schema.install(listening)
                if address.notify:
                    await listening.add_listener(self.namespace, self._on_notify)
                listening.add_termination_listener(lambda _: self._suspect())
                self._pool = asyncpg.create_pool(
                    address.dsn, min_size=1, max_size=address.pool_size, reset=_keep, **address.options
                )
                await self._pool
                is_connected = True
                if address.notify:
                    # Without parameters, which would be a statement to prepare.
                    await self._pool.execute(f"NOTIFY {self._schema.quoted}, '{self._token}'")
                    await self._heard.wait()
            return installation
        except BaseException as exc:
            self._disconnect()
            if isinstance(exc, EngineUnavailable):
                raise
            if isinstance(exc, TimeoutError) and is_connected:
                raise self._address.unavailable(
                    "LISTEN does not work there. If this is a pooler that gives a connection for a "
                    "transaction only, add '?listen=host:port' to the URL, with PostgreSQL's own address."
                ) from None
            if isinstance(exc, asyncpg.ClientConfigurationError | ValueError):
                # Their messages may repeat the URL.
                raise self._address.unavailable(
                    "the URL has a part that asyncpg does not understand."
                ) from None
            if isinstance(exc, ERRORS):
                raise self._address.unavailable(why(exc)) from exc
            raise

    def _disconnect(self) -> None:
        """Without waiting for the server, which may not be there."""
        if self._pool is not None:
            self._pool.terminate()
        if self._listening is not None:
            self._listening.terminate()
        self._pool = self._listening = None

    # Inside: removing what has expired

    async def _prune(self) -> None:
        loop = asyncio.get_running_loop()
        # Snapshots, and when they were taken.
        snapshots: deque[tuple[float, str]] = deque()
        streams_pruned = loop.time()
        while True:
            await asyncio.sleep(PRUNE * (0.5 + random()))
            try:
                taken = loop.time()
                snapshot = await self._ask(
                    lambda connection: connection.fetchval("SELECT pg_current_snapshot()::text")
                )
                snapshots.append((taken, snapshot))
                while len(snapshots) > 1 and snapshots[1][0] + HANDOVER <= taken:
                    snapshots.popleft()
                if snapshots[0][0] + HANDOVER <= taken:
                    while await self._prune_step(snapshots[0][1]) >= PRUNE_LIMIT:
                        pass
                if streams_pruned + PRUNE_STREAMS <= taken:
                    streams_pruned = taken
                    await self._prune_streams()
            except (EngineUnavailable, ValueError) as exc:
                logger.debug("Could not prune: %s", exc)

    async def _prune_streams(self) -> None:
        prune = self._schema.sql("SELECT {schema}.prune_streams($1, $2)")
        in_use = self._reader.channels
        await self._ask(lambda connection: connection.execute(prune, in_use, PRUNE_LIMIT))

    async def _prune_step(self, snapshot: str) -> int:
        prune = self._schema.sql("SELECT {schema}.prune($1::text::pg_snapshot, $2)")
        removed = await self._ask(lambda connection: connection.fetchval(prune, snapshot, PRUNE_LIMIT))
        return int(removed)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"


async def _keep(connection: object) -> None:
    """Resets nothing when a connection goes back to the pool, which would take a round trip: nothing that we
    do with it outlasts a transaction."""
