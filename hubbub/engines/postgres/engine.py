"""The engine for ``postgresql://``: listens, reads, publishes, and connects again."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.resources import files
from itertools import islice
from random import random
from secrets import token_hex
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import asyncpg

from hubbub.core.publication import START, Position, Publication
from hubbub.engines.backoff import Backoff
from hubbub.engines.base import IDEMPOTENCY_WINDOW, Engine, Finding, Page, Sink
from hubbub.engines.postgres.address import DEADLINE, Address
from hubbub.engines.postgres.inspection import inspect
from hubbub.engines.postgres.transactions import append_in
from hubbub.exceptions import EngineUnavailable, HubNotRunning
from hubbub.types import History

logger = logging.getLogger("hubbub.postgres")

T = TypeVar("T")
Listening: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

#: The version of the schema in ``schema.sql``.
VERSION = 1

#: Seconds between two reads that no notification has asked for.
POLL = 1.0

#: What is read at once: channels, publications, publications of one channel, bytes (and one of them more).
READ_CHANNELS, READ_LIMIT, READ_LIMIT_CHANNEL, READ_BYTES = 1000, 1000, 100, 8_388_608

#: Seconds between two notifications by which a node finds out whether it hears.
HEARING_CHECK = 10.0

#: Seconds that saying goodbye may take.
CLOSE = 1.0

#: Publications to one channel, and their bytes, that are accepted in one transaction.
BATCH_SIZE, BATCH_BYTES = 100, 1_048_576

#: Seconds that a publication to a channel without history is kept after its transaction, to be handed over.
HANDOVER = 60.0

#: Seconds that a stream is remembered after its last publication is gone. After that it begins anew.
STREAM_TTL = 3600.0

#: Seconds between two rounds of removing what has expired, rows removed at once, and seconds between two
#: rounds of forgetting streams.
PRUNE, PRUNE_LIMIT, PRUNE_STREAMS = 10.0, 1000, 600.0

#: The name of a schema, and of what one listens to. PostgreSQL would cut off what is longer.
_NAMESPACE = re.compile(r"(?!pg_)[A-Za-z0-9_.:-]{1,63}")

#: Begins notifications that are not about a channel; no channel's name begins with it.
_HEARING = "\x01"

_INSTALLED = """
SELECT current_user AS user, current_database() AS database,
    EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1) AS has_schema,
    EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = 'state') AS has_tables
"""

_APPEND = """
SELECT a."offset", a.epoch
FROM unnest($2::bytea[], $3::text[], $4::bigint[], $5::float8[], $6::text[], $7::text[], $8::text[])
    WITH ORDINALITY AS b (data, kind, size, ttl, key, exclude, id, number)
CROSS JOIN LATERAL {schema}.append($1, b.data, b.kind, b.size, b.ttl, b.key, b.exclude, b.id) AS a
ORDER BY b.number
"""

# For each channel what comes after what has been seen, all as of one moment.
_READ = """
SELECT *, extract(epoch FROM time)::float8 AS seconds FROM (
    SELECT p.*, c.number,
        sum(octet_length(p.data)) OVER (ORDER BY c.number, p.sequence) - octet_length(p.data) AS bytes_before
    FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS c (channel, seen, number)
    CROSS JOIN LATERAL (
        SELECT * FROM {schema}.publications o
        WHERE o.channel = c.channel AND o.sequence > c.seen ORDER BY o.sequence LIMIT $3
    ) AS p
) AS found
WHERE bytes_before < $5
ORDER BY number, sequence LIMIT $4
"""

# Streams that stand before what has been seen of them.
_SET_BACK = """
SELECT s.channel, s.sequence FROM unnest($1::text[], $2::bigint[]) AS c (channel, seen)
JOIN {schema}.streams s ON s.channel = c.channel AND s.sequence < c.seen
"""

# A channel of which nothing is found, or nothing new, is one row without a publication.
_HISTORY = """
SELECT s."offset" AS top, s.epoch AS top_epoch, p.*, extract(epoch FROM p.time)::float8 AS seconds
FROM (
    SELECT *, sequence - base AS "offset",
        clock_timestamp() - make_interval(secs => least(ttl, 3e9)) AS oldest
    FROM {schema}.streams WHERE channel = $1 AND size IS NOT NULL
) AS s
LEFT JOIN LATERAL (
    SELECT * FROM {schema}.publications o
    WHERE o.channel = s.channel AND o.time >= s.oldest AND ($2 IN ('', s.epoch))
        AND o.sequence > s.base + greatest(s."offset" - s.size, $3::bigint)
        AND o.sequence < s.base + least(s."offset" + 1, $4::bigint)
    ORDER BY o.sequence {direction} LIMIT $5
) AS p ON true
ORDER BY p.sequence {direction}
"""


class Subscription:
    """What this node has seen of a channel."""

    __slots__ = ("seen",)

    def __init__(self, seen: int) -> None:
        self.seen = seen


class Item(NamedTuple):
    """A publication that waits to be accepted."""

    publication: Publication
    history: History | None
    key: str | None
    accepted: asyncio.Future[Position]


class PostgresEngine(Engine):
    """One schema of a PostgreSQL database, named after the namespace.

    :param url: as libpq takes it, ``postgresql://user:password@host:5432/database``. Three parameters are
        ours: ``pool_size=10``, connections besides the one that listens; ``statement_cache_size=0`` for a
        pooler that cannot keep prepared statements; ``listen=host:port`` where to listen, if the URL is that
        of a pooler that gives a connection for a transaction only.
    """

    across_processes: ClassVar[bool] = True

    def __init__(self, url: str, namespace: str = "hubbub") -> None:
        super().__init__(url, namespace)
        if not _NAMESPACE.fullmatch(namespace):
            raise ValueError(
                "Expected a namespace of 1 to 63 letters, digits or any of '_.:-' that does not begin with "
                f"'pg_', but got {namespace!r}."
            )
        self._address = Address(url)
        self._append = self._sql(_APPEND)
        self._read = self._sql(_READ)
        self._set_back = self._sql(_SET_BACK)
        self._forwards = self._sql(_HISTORY).replace("{direction}", "ASC")
        self._backwards = self._sql(_HISTORY).replace("{direction}", "DESC")

        self._sink: Sink | None = None
        self._listening: Listening | None = None
        self._pool: Pool | None = None
        # Set while a connection listens. Publishing waits for it: who cannot hear does not speak.
        self._hearing = asyncio.Event()
        # Why it does not.
        self._trouble = ""
        self._heard = asyncio.Event()
        # What is heard then.
        self._token = ""
        self._installation = ""
        self._subscriptions: dict[str, Subscription] = {}
        # Channels in which there may be something to read, in the order in which that was found out.
        self._stirred: dict[str, None] = {}
        self._wake = asyncio.Event()
        # Channel -> what waits for the task that publishes to it, one transaction after another.
        self._queues: dict[str, deque[Item]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # Life

    async def start(self, sink: Sink) -> None:
        # Anew, for they belong to the event loop on which they are used.
        self._hearing, self._heard, self._wake = asyncio.Event(), asyncio.Event(), asyncio.Event()
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
        for queue in self._queues.values():
            self._fail(queue, self._unavailable("the engine has been stopped."))
        self._queues.clear()
        self._subscriptions.clear()
        self._stirred.clear()
        with suppress(*_ERRORS):
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
        accepted: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        item = Item(publication, history, idempotency_key, accepted)
        queue = self._queues.get(publication.channel)
        if queue is None:
            queue = self._queues[publication.channel] = deque()
            self._spawn(self._publish(publication.channel, queue))
        queue.append(item)
        try:
            async with asyncio.timeout(DEADLINE):
                return await accepted
        except TimeoutError:
            raise self._late("Is a transaction that published to the channel still open?") from None

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
            using, _quote(self.namespace), _arguments(publication, history, idempotency_key)
        )
        return Position(offset, epoch)

    # Subscribing

    async def subscribe(self, channel: str, history: History | None = None) -> Position:
        async def subscribe(connection: Any) -> asyncpg.Record | None:
            row = await connection.fetchrow(
                self._sql("SELECT * FROM {schema}.streams WHERE channel = $1"), channel
            )
            if history is None or (
                row is not None and (row["size"], row["ttl"]) == (history.size, history.ttl)
            ):
                return row  # type: ignore[no-any-return]
            declare = self._sql("SELECT * FROM {schema}.declare($1, $2, $3)")
            return await connection.fetchrow(declare, channel, history.size, history.ttl)  # type: ignore[no-any-return]

        stream = await self._ask(subscribe)
        # What was committed since this was read, and announced before it came, is yet to be read.
        self._subscriptions[channel] = Subscription(stream["sequence"] if stream else 0)
        self._stir(channel)
        if stream is None or stream["size"] is None:
            return START
        return Position(stream["sequence"] - stream["base"], stream["epoch"])

    async def unsubscribe(self, channel: str) -> None:
        self._started()
        self._subscriptions.pop(channel, None)

    # History

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> Page:
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
            return Page((), START)
        position = Position(rows[0]["top"], rows[0]["top_epoch"])
        return Page([_publication(row) for row in rows if row["sequence"] is not None], position)

    async def remove_history(self, channel: str) -> None:
        remove = self._sql("SELECT {schema}.remove_history($1)")
        await self._ask(lambda connection: connection.execute(remove, channel))

    async def inspect(self) -> Sequence[Finding]:
        return await self._ask(
            lambda connection: inspect(connection, self.namespace, self._address.pool_size)
        )

    # Inside: asking the database

    def _started(self) -> Sink:
        if self._sink is None:
            raise HubNotRunning("The PostgreSQL engine has not been started.")
        return self._sink

    def _sql(self, template: str) -> str:
        return template.replace("{schema}", _quote(self.namespace))

    def _unavailable(self, why: object) -> EngineUnavailable:
        return EngineUnavailable(f"PostgreSQL at {self._address} cannot be used: {why}")

    def _late(self, hint: str) -> EngineUnavailable:
        if not self._hearing.is_set():
            return self._unavailable(self._trouble)
        return self._unavailable(f"no answer within {DEADLINE:g} s. {hint}")

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask(self, question: Callable[[Any], Awaitable[T]]) -> T:
        """The answer to ``question``, which is called with a connection of the pool.

        :raises EngineUnavailable: there is none within the deadline.
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
            raise self._unavailable("the engine has been stopped.")
        exc = task.exception()
        if exc is None:
            return task.result()  # type: ignore[no-any-return]
        if isinstance(exc, _ERRORS):
            # If the tables are gone, the reading task sees it too, and heals it.
            self._wake.set()
            raise self._unavailable(_why(exc)) from exc
        raise exc

    async def _asked(self, question: Callable[[Any], Awaitable[T]]) -> T:
        await self._hearing.wait()
        assert self._pool is not None
        async with self._pool.acquire(timeout=DEADLINE) as connection:
            if self._address.keeps_statements:
                return await question(connection)
            # A pooler may give each transaction another connection; a statement is prepared in one, and then
            # run in the same.
            async with connection.transaction():
                return await question(connection)

    # Inside: publishing

    async def _publish(self, channel: str, queue: deque[Item]) -> None:
        """Publish what is in ``queue`` until there is no more: what comes meanwhile goes together."""
        while queue:
            batch: list[Item] = []
            size = 0
            while queue and len(batch) < BATCH_SIZE and size < BATCH_BYTES:
                item = queue.popleft()
                if not item.accepted.done():
                    batch.append(item)
                    size += len(item.publication.data)
            if not batch:
                continue
            try:
                rows = await self._ask(partial(self._append_batch, channel, batch))
            except asyncio.CancelledError:
                self._fail(batch, self._unavailable("the engine has been stopped."))
                raise
            except Exception as exc:
                self._fail(batch, exc)
            else:
                for item, row in zip(batch, rows, strict=True):
                    if not item.accepted.done():
                        item.accepted.set_result(Position(row["offset"], row["epoch"]))
        del self._queues[channel]

    async def _append_batch(
        self, channel: str, batch: Sequence[Item], connection: Any
    ) -> Sequence[asyncpg.Record]:
        columns = zip(*(_arguments(*item[:3])[1:] for item in batch), strict=True)
        return await connection.fetch(self._append, channel, *columns)  # type: ignore[no-any-return]

    def _fail(self, items: Sequence[Item] | deque[Item], exc: Exception) -> None:
        for item in items:
            if not item.accepted.done():
                item.accepted.set_exception(exc)

    # Inside: listening and reading

    async def _run(self) -> None:
        """Read what comes, and whenever that fails, connect again."""
        is_back = False
        while True:
            try:
                if is_back:
                    self._started().on_reconnect()
                await self._listen()
            except _ERRORS as exc:
                self._trouble = _why(exc)
                logger.warning("Lost PostgreSQL at %s: %s", self._address, _why(exc))
            except Exception as exc:
                self._trouble = _why(exc)
                logger.exception("Reading from PostgreSQL at %s failed.", self._address)
            self._hearing.clear()
            self._disconnect()
            await self._reconnect()
            is_back = True

    async def _listen(self) -> None:
        listening = self._listening
        assert listening is not None
        loop = asyncio.get_running_loop()
        polled = tested = loop.time()
        test: asyncio.Task[bool] | None = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, polled + POLL - loop.time())):
                    await self._wake.wait()
            self._wake.clear()
            if loop.time() >= polled + POLL:
                polled = loop.time()
                await self._poll(listening)
            async with asyncio.timeout(DEADLINE):
                await self._read_stirred(listening)
            if test is not None and test.done():
                if not test.result():
                    raise TimeoutError("notifications do not arrive any more.")
                test = None
            if test is None and loop.time() >= tested + HEARING_CHECK:
                tested = loop.time()
                test = self._spawn(self._test_hearing())

    async def _poll(self, listening: Listening) -> None:
        """Look by ourselves, as if we had been notified: at all channels, or at many of them in turn."""
        channels = list(islice(self._subscriptions, READ_CHANNELS))
        if len(channels) < len(self._subscriptions):
            for channel in channels:
                self._subscriptions[channel] = self._subscriptions.pop(channel)
        seen = [self._subscriptions[channel].seen for channel in channels]
        async with asyncio.timeout(DEADLINE):
            rows = await listening.fetch(self._set_back, channels, seen)
        for row in rows:
            # Only a server that has forgotten what it had committed: after a crash, or from a backup.
            logger.warning("PostgreSQL at %s was set back to an earlier state.", self._address)
            if subscription := self._subscriptions.get(row["channel"]):
                subscription.seen = row["sequence"]
        if rows:
            self._started().on_reconnect()
        for channel in channels:
            self._stir(channel)

    async def _read_stirred(self, listening: Listening) -> None:
        channels = list(islice(self._stirred, READ_CHANNELS))
        for channel in channels:
            del self._stirred[channel]
        if self._stirred:
            self._wake.set()
        reading = {each: self._subscriptions[each] for each in channels if each in self._subscriptions}
        if not reading:
            # Also an answer that says that the connection is alive.
            await listening.execute("SELECT 1")
            return
        rows = await listening.fetch(
            self._read,
            list(reading),
            [each.seen for each in reading.values()],
            READ_LIMIT_CHANNEL,
            READ_LIMIT,
            READ_BYTES,
        )
        sink = self._started()
        for row in rows:
            subscription = reading[row["channel"]]
            if (
                self._subscriptions.get(row["channel"]) is subscription
                and row["sequence"] > subscription.seen
            ):
                subscription.seen = row["sequence"]
                sink.on_publication(_publication(row))
        # Where there may be more; those first that got nothing because the others had so much.
        counts = Counter(row["channel"] for row in rows)
        is_cut_off = len(rows) == READ_LIMIT or sum(len(row["data"]) for row in rows) >= READ_BYTES
        if is_cut_off:
            for channel in reading:
                if channel not in counts:
                    self._stir(channel)
        for channel, count in counts.items():
            if count == READ_LIMIT_CHANNEL or is_cut_off:
                self._stir(channel)

    def _stir(self, channel: str) -> None:
        if channel in self._subscriptions:
            self._stirred[channel] = None
            self._wake.set()

    def _on_notify(self, connection: object, pid: int, name: str, payload: object) -> None:
        if payload == self._token:
            self._heard.set()
        elif isinstance(payload, str):
            self._stir(payload)

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
                self._trouble = _why(exc.__cause__ or exc)
                logger.warning("%s", exc)
            except Exception as exc:
                # Whatever it is, giving up would be worse.
                self._trouble = _why(exc)
                logger.exception("Connecting to PostgreSQL at %s failed.", self._address)
            else:
                break
        logger.info("PostgreSQL at %s is back.", self._address)
        if installation != self._installation:
            # The schema has been made anew. All that is in it is new to us.
            self._installation = installation
            for subscription in self._subscriptions.values():
                subscription.seen = 0
        for channel in self._subscriptions:
            self._stir(channel)
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
                installation = await self._install(listening)
                await listening.add_listener(self.namespace, self._on_notify)
                listening.add_termination_listener(lambda _: self._wake.set())
                self._pool = asyncpg.create_pool(
                    address.dsn, min_size=1, max_size=address.pool_size, **address.options
                )
                await self._pool
                is_connected = True
                # Without parameters, which would be a statement to prepare.
                await self._pool.execute(f"NOTIFY {_quote(self.namespace)}, '{self._token}'")
                await self._heard.wait()
            return installation
        except BaseException as exc:
            self._disconnect()
            if isinstance(exc, EngineUnavailable):
                raise
            if isinstance(exc, TimeoutError) and is_connected:
                raise self._unavailable(
                    "LISTEN does not work there. If this is a pooler that gives a connection for a "
                    "transaction only, add '?listen=host:port' to the URL, with PostgreSQL's own address."
                ) from None
            if isinstance(exc, asyncpg.ClientConfigurationError | ValueError):
                # Their messages may repeat the URL.
                raise self._unavailable("the URL has a part that asyncpg does not understand.") from None
            if isinstance(exc, _ERRORS):
                raise self._unavailable(_why(exc)) from exc
            raise

    def _disconnect(self) -> None:
        """Without waiting for the server, which may not be there."""
        if self._pool is not None:
            self._pool.terminate()
        if self._listening is not None:
            self._listening.terminate()
        self._pool = self._listening = None

    async def _install(self, connection: Listening) -> str:
        """Make the schema if there is none. Returns the id of the installation."""
        if connection.get_server_version().major < 13:
            raise self._unavailable("it is older than PostgreSQL 13.")
        async with connection.transaction():
            found = await connection.fetchrow(_INSTALLED, self.namespace)
            assert found is not None
            if not found["has_tables"]:
                # Several workers start at once: one makes it, the others wait and find it.
                await connection.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended('hubbub install ' || $1, 0))",
                    self.namespace,
                )
                found = await connection.fetchrow(_INSTALLED, self.namespace)
                assert found is not None
            if not found["has_tables"]:
                try:
                    if not found["has_schema"]:
                        await connection.execute(self._sql("CREATE SCHEMA {schema}"))
                    await connection.execute(self._schema())
                except asyncpg.InsufficientPrivilegeError as exc:
                    user, database = found["user"], found["database"]
                    raise self._unavailable(
                        f"{user} may not make the schema {self.namespace!r} ({exc}). As somebody who may, "
                        f"run: CREATE SCHEMA {_quote(self.namespace)} AUTHORIZATION {_quote(user)}; "
                        f"or: GRANT CREATE ON DATABASE {_quote(database)} TO {_quote(user)};"
                    ) from exc
            state = await connection.fetchrow(self._sql("SELECT version, id FROM {schema}.state"))
            if state is None or state["version"] != VERSION:
                version = None if state is None else state["version"]
                raise self._unavailable(
                    f"the schema {self.namespace!r} is of version {version}, but this version of Hubbub "
                    f"knows {VERSION}. Upgrade Hubbub here, or give this hub another namespace."
                )
            return str(state["id"])

    def _schema(self) -> str:
        sql = self._sql(files(__package__).joinpath("schema.sql").read_text(encoding="utf-8"))
        defaults = History()
        for name, value in {
            "name": f"'{self.namespace}'",
            "version": VERSION,
            "handover": HANDOVER,
            "window": IDEMPOTENCY_WINDOW,
            "stream_ttl": STREAM_TTL,
            "default_size": defaults.size,
            "default_ttl": defaults.ttl,
        }.items():
            sql = sql.replace(f"{{{name}}}", str(value))
        return sql

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
            except EngineUnavailable as exc:
                logger.debug("Could not prune: %s", exc)

    async def _prune_streams(self) -> None:
        prune = self._sql("SELECT {schema}.prune_streams($1, $2)")
        in_use = list(self._subscriptions)
        await self._ask(lambda connection: connection.execute(prune, in_use, PRUNE_LIMIT))

    async def _prune_step(self, snapshot: str) -> int:
        prune = self._sql("SELECT {schema}.prune($1::text::pg_snapshot, $2)")
        removed = await self._ask(lambda connection: connection.fetchval(prune, snapshot, PRUNE_LIMIT))
        return int(removed)


def _quote(name: str) -> str:
    """``name`` as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _arguments(publication: Publication, history: History | None, key: str | None) -> tuple[Any, ...]:
    """What the database's function ``append`` is called with."""
    size, ttl = (history.size, history.ttl) if history is not None else (None, None)
    channel, data, kind = publication.channel, publication.data, publication.kind
    return channel, data, kind, size, ttl, key, publication.exclude, publication.id


def _publication(row: asyncpg.Record) -> Publication:
    return Publication(
        row["channel"],
        row["data"],
        row["kind"],
        row["exclude"],
        row["id"],
        row["offset"],
        row["epoch"],
        row["seconds"],
    )


#: What a database or a network that does not do as expected raises.
_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def _why(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError) and not str(exc):
        return f"no answer within {DEADLINE:g} s."
    return str(exc) or type(exc).__name__
