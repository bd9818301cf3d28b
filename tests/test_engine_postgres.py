"""What only PostgreSQL promises: publishing in transactions, and healing by itself."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from secrets import token_hex
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from hubbub import Hub
from hubbub.core.publication import START, Position
from hubbub.engines import engine_for
from hubbub.engines.base import PresenceChange
from hubbub.engines.contract import HISTORY, Collector, publication
from hubbub.engines.memory import MemoryEngine
from hubbub.engines.postgres import PostgresEngine, address, reader, schema
from hubbub.engines.postgres import engine as module
from hubbub.exceptions import EngineUnavailable, HubNotRunning, InvalidURL
from hubbub.types import History
from tests.postgres import PostgresServer
from tests.servers import free_port

#: Seconds after which a test gives up.
DEADLINE = 30.0

#: A connection to the database, of whichever driver, within a transaction.
Using: TypeAlias = Any

needs_own_server = pytest.mark.skipif(
    "HUBBUB_TEST_POSTGRES_URL" in os.environ, reason="stops and starts the server"
)


@pytest.fixture
async def other(postgres_url: str) -> AsyncIterator[Any]:
    """A connection that has nothing to do with Hubbub."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@asynccontextmanager
async def started(url: str, namespace: str) -> AsyncIterator[tuple[PostgresEngine, Collector]]:
    engine, collector = PostgresEngine(url, namespace), Collector()
    await engine.start(collector)
    try:
        yield engine, collector
    finally:
        await engine.stop()


@pytest.fixture
async def node(postgres_url: str, namespace: str) -> AsyncIterator[tuple[PostgresEngine, Collector]]:
    async with started(postgres_url, namespace) as node:
        yield node


async def until(connection: Any, condition: str) -> None:
    """Wait until ``condition``, in SQL, is true."""
    async with asyncio.timeout(DEADLINE):
        while not await connection.fetchval(f"SELECT {condition}"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def publish_when_possible(engine: PostgresEngine, channel: str, text: str) -> Position:
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(EngineUnavailable):
                return await engine.publish(publication(channel, text), HISTORY)
            await asyncio.sleep(0.05)


# Publishing in transactions


@asynccontextmanager
async def asyncpg_connection(url: str) -> AsyncIterator[Using]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_pool(url: str) -> AsyncIterator[Using]:
    async with (
        asyncpg.create_pool(url, min_size=1) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        yield connection


@asynccontextmanager
async def psycopg_connection(url: str) -> AsyncIterator[Using]:
    # Leaving the block commits, or rolls back after an exception.
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as connection:
        yield connection


def sqlalchemy(driver: str, kind: str) -> Callable[[str], AbstractAsyncContextManager[Using]]:
    @asynccontextmanager
    async def using(url: str) -> AsyncIterator[Using]:
        engine = create_async_engine(re.sub("^[a-z]+:", f"postgresql+{driver}:", url))
        try:
            if kind == "session":
                async with AsyncSession(engine) as session, session.begin():
                    yield session
            else:
                async with engine.begin() as connection:
                    yield connection
        finally:
            await engine.dispose()

    return using


DRIVERS: dict[str, Callable[[str], AbstractAsyncContextManager[Using]]] = {
    "asyncpg": asyncpg_connection,
    "asyncpg pool": asyncpg_pool,
    "psycopg": psycopg_connection,
    "sqlalchemy session, asyncpg": sqlalchemy("asyncpg", "session"),
    "sqlalchemy session, psycopg": sqlalchemy("psycopg", "session"),
    "sqlalchemy connection, asyncpg": sqlalchemy("asyncpg", "connection"),
    "sqlalchemy connection, psycopg": sqlalchemy("psycopg", "connection"),
}


class RollBack(Exception):
    """Ends a transaction without a commit."""


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_transaction_publishes_once_with_its_commit_and_nothing_with_a_rollback(
    driver: str, node: tuple[PostgresEngine, Collector], postgres_url: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat", HISTORY)
    await engine.subscribe("plain")
    with suppress(RollBack):
        async with DRIVERS[driver](postgres_url) as using:
            await engine.publish_in(publication("chat", "rolled back"), HISTORY, None, using)
            await engine.publish_in(publication("plain", "rolled back"), None, None, using)
            raise RollBack
    async with DRIVERS[driver](postgres_url) as using:
        first = await engine.publish_in(publication("chat", "ü 1"), HISTORY, "key", using)
        again = await engine.publish_in(publication("chat", "ü 1"), HISTORY, "key", using)
        assert again == first
        assert (await engine.publish_in(publication("chat", "2", "me"), HISTORY, None, using)).offset == 2
        assert await engine.publish_in(publication("plain", "3"), None, None, using) == START
        assert collector.publications == []
    assert first.offset == 1
    await collector.heard("chat", ["ü 1", "2"])
    await collector.heard("plain", ["3"])
    assert collector.publications[0].position == first
    history = await engine.history("chat")
    assert [each.exclude for each in history.publications] == [None, "me"]


async def test_what_else_the_transaction_does_is_committed_with_it(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("orders")
    await other.execute(f'CREATE TABLE "{namespace}".orders (id integer PRIMARY KEY)')
    for number, is_new in ((1, True), (1, False), (2, True)):
        with suppress(asyncpg.UniqueViolationError):
            async with asyncpg_connection(postgres_url) as using:
                await engine.publish_in(publication("orders", f"{number} {is_new}"), None, None, using)
                await using.execute(f'INSERT INTO "{namespace}".orders VALUES ($1)', number)
    await collector.heard("orders", ["1 True", "2 True"])


async def test_hubs_publish_with_the_transaction(postgres_url: str) -> None:
    hub = Hub(postgres_url)
    async with hub, asyncpg_connection(postgres_url) as using:
        position = await hub.publish("test", {"a": 1}, using=using)
        assert position == await hub.publish("test", {"a": 1}, using=using)


@pytest.mark.parametrize("what", [object(), psycopg.Connection, "postgresql://"])
async def test_what_cannot_take_part_is_answered_with_what_can(
    what: object, node: tuple[PostgresEngine, Collector]
) -> None:
    with pytest.raises(TypeError, match=r"asyncpg, an AsyncConnection of psycopg, .* of SQLAlchemy, but got"):
        await node[0].publish_in(publication("chat", "1"), None, None, what)


async def test_a_pool_is_not_a_transaction(node: tuple[PostgresEngine, Collector], postgres_url: str) -> None:
    async with asyncpg.create_pool(postgres_url, min_size=1) as pool:
        with pytest.raises(TypeError, match=r"but got asyncpg\.pool\.Pool"):
            await node[0].publish_in(publication("chat", "1"), None, None, pool)


async def test_other_engines_say_that_they_cannot() -> None:
    async with Hub() as hub:
        assert isinstance(hub.engine, MemoryEngine)
        with pytest.raises(TypeError, match=r"'postgresql://'.*MemoryEngine"):
            await hub.publish("chat", "1", using=object())


# From SQL


async def test_the_simple_call_and_every_kind_of_data(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat")
    publish = f'"{namespace}".publish'
    await other.execute(f"SELECT {publish}('chat', 'hällo')")
    await other.execute(f"SELECT {publish}('chat', '\\x00ff'::bytea)")
    await other.execute(f"SELECT {publish}('chat', '{{\"a\":1}}'::json, exclude => 'me')")
    await other.execute(f"SELECT {publish}('chat', '{{\"a\": 1}}'::jsonb)")
    await other.execute(f"SELECT {publish}('chat', '[1]', 'json', id => 'mine')")
    await collector.until(lambda: len(collector.publications) == 5)
    assert [(each.kind, each.data, each.exclude) for each in collector.publications] == [
        ("text", "hällo".encode(), None),
        ("binary", b"\x00\xff", None),
        ("json", b'{"a":1}', "me"),
        ("json", b'{"a": 1}', None),
        ("json", b"[1]", None),
    ]
    assert collector.publications[-1].id == "mine"
    assert len({each.id for each in collector.publications}) == 5
    row = await other.fetchrow(f"SELECT * FROM {publish}('kept', 'x', history_size => 5)")
    assert Position(row["offset"], row["epoch"]) == (await engine.history("kept")).position
    row = await other.fetchrow(f"SELECT * FROM {publish}('kept', 'y')")
    assert row["offset"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        "'', 'x'",
        "repeat('x', 256), 'x'",
        "E'\\x01control', 'x'",
        "E'\\x01presence:chat', '{}'::json",
        "E'a\\nb', 'x'",
        "E'a\\u2028b', 'x'",
        "NULL, 'x'",
        "'chat', NULL",
        "'chat', 'x', 'video'",
        "'chat', 'x', history_size => 0",
        "'chat', 'x', history_ttl => -1",
    ],
)
async def test_what_cannot_be_published_is_refused(
    arguments: str, node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    with pytest.raises(asyncpg.PostgresError):
        await other.execute(f'SELECT "{namespace}".publish({arguments})')


async def test_hubs_have_channels_that_are_closed_to_others(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    engine, collector = node
    names = ["\x01control", "\x01presence:" + "ü" * 255, "\x01" + "x" * 279]
    for name in names:
        await engine.subscribe(name)
    for name in names:
        assert await engine.publish(publication(name, "1")) == START
        await collector.heard(name, ["1"])
    for name in ("\x01", "\x01\x01a", "a\x01", "\x02a", "\x01" + "x" * 280):
        with pytest.raises(EngineUnavailable, match="without control characters"):
            await engine.publish(publication(name, "1"))
    async with asyncpg_connection(postgres_url) as using:
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await engine.publish_in(publication("\x01control", "1"), None, None, using)
    role = f"role_{token_hex(4)}"
    await other.execute(f'CREATE ROLE {role}; GRANT USAGE ON SCHEMA "{namespace}" TO {role}; SET ROLE {role}')
    accept = f"""SELECT "{namespace}".accept($1, '', 'text', NULL, NULL, NULL, NULL, NULL)"""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await other.execute(accept, "\x01control")
    await other.execute("RESET ROLE")
    await other.execute(accept, "\x01control")


async def test_a_trigger_publishes(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("orders:7")
    await other.execute(f"""
        CREATE TABLE "{namespace}".orders (id integer, status text);
        CREATE FUNCTION "{namespace}".announce() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM "{namespace}".publish('orders:' || NEW.id, to_jsonb(NEW));
            RETURN NEW;
        END $$;
        CREATE TRIGGER announce AFTER INSERT OR UPDATE ON "{namespace}".orders
            FOR EACH ROW EXECUTE FUNCTION "{namespace}".announce();
        INSERT INTO "{namespace}".orders VALUES (7, 'new'), (8, 'new');
        UPDATE "{namespace}".orders SET status = 'paid';
    """)
    await collector.until(lambda: len(collector.publications) == 2)
    assert [json.loads(each.data) for each in collector.publications] == [
        {"id": 7, "status": "new"},
        {"id": 7, "status": "paid"},
    ]


async def test_who_may_use_the_schema_may_publish_and_nothing_else(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat")
    role = f"role_{token_hex(4)}"
    await other.execute(f'CREATE ROLE {role}; GRANT USAGE ON SCHEMA "{namespace}" TO {role}; SET ROLE {role}')
    await other.execute(f"""SELECT "{namespace}".publish('chat', 'hello')""")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await other.execute(f'DELETE FROM "{namespace}".publications')
    await other.execute("RESET ROLE")
    await collector.heard("chat", ["hello"])


# Order


async def test_the_order_of_a_channel_is_the_order_of_commits(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str
) -> None:
    engine, collector = node
    for channel, history in (("kept", HISTORY), ("plain", None)):
        await engine.subscribe(channel, history)
        async with asyncpg_connection(postgres_url) as using:
            await engine.publish_in(publication(channel, "1"), history, None, using)
            # It waits for the transaction, and so does who publishes through the engine.
            waiting = asyncio.create_task(engine.publish(publication(channel, "3"), history))
            await until(other, "EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
            await engine.publish_in(publication(channel, "2"), history, None, using)
            assert not waiting.done()
            assert collector.texts(channel) == []
        await waiting
        await collector.heard(channel, ["1", "2", "3"])


@pytest.mark.parametrize("history", [None, HISTORY])
async def test_nothing_is_lost_when_a_transaction_that_began_later_commits_first(
    history: History | None, node: tuple[PostgresEngine, Collector], postgres_url: str
) -> None:
    engine, collector = node
    for channel in ("slow", "fast", "slower"):
        await engine.subscribe(channel, history)
    async with asyncpg_connection(postgres_url) as slower:
        await engine.publish_in(publication("slower", "1"), history, None, slower)
        async with asyncpg_connection(postgres_url) as slow:
            await engine.publish_in(publication("slow", "1"), history, None, slow)
            async with asyncpg_connection(postgres_url) as fast:
                await engine.publish_in(publication("fast", "1"), history, None, fast)
            await collector.heard("fast", ["1"])
            # Also when a node has looked at all its channels meanwhile.
            await asyncio.sleep(module.POLL + 0.5)
            await engine.publish_in(publication("slow", "2"), history, None, slow)
        await collector.heard("slow", ["1", "2"])
        await engine.publish_in(publication("slower", "2"), history, None, slower)
    await collector.heard("slower", ["1", "2"])
    await collector.heard("fast", ["1"])


@pytest.mark.parametrize("history", [None, HISTORY])
async def test_many_transactions_at_once_lose_and_double_nothing(
    history: History | None, node: tuple[PostgresEngine, Collector], postgres_url: str, namespace: str
) -> None:
    engine, collector = node
    channels = ["a", "b", "c"]
    for channel in channels:
        await engine.subscribe(channel, history)
    committed: dict[str, set[str]] = {channel: set() for channel in channels}

    async def work(worker: int) -> None:
        for number in range(20):
            mine = channels[worker % 3 :]
            text = f"{worker}:{number}"
            with suppress(RollBack):
                async with asyncpg_connection(postgres_url) as using:
                    for channel in mine:
                        await engine.publish_in(publication(channel, text), history, None, using)
                        await asyncio.sleep(0)
                    if number % 4 == 0:
                        raise RollBack
                for channel in mine:
                    committed[channel].add(text)

    async with started(postgres_url, namespace) as (second, second_collector):
        for channel in channels:
            await second.subscribe(channel, history)
        await asyncio.gather(*(work(worker) for worker in range(9)))
        total = sum(map(len, committed.values()))
        for each in (collector, second_collector):
            await each.until(lambda c=each: len(c.publications) >= total)  # type: ignore[misc]
            for channel in channels:
                assert len(each.texts(channel)) == len(committed[channel])
                assert set(each.texts(channel)) == committed[channel]
        assert all(collector.texts(channel) == second_collector.texts(channel) for channel in channels)


async def test_a_burst_larger_than_one_read_arrives_whole(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    for channel in ("a", "z"):
        await engine.subscribe(channel)
    await other.execute(f"""SELECT "{namespace}".publish('a', n::text) FROM generate_series(1, 2500) n""")
    await other.execute(f"""SELECT "{namespace}".publish('z', '1')""")
    await collector.heard("z", ["1"])
    await collector.heard("a", [str(n) for n in range(1, 2501)])


async def test_large_publications_are_read_in_portions(
    monkeypatch: pytest.MonkeyPatch, node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    monkeypatch.setattr(reader, "READ_BYTES", 1000)
    engine, collector = node
    for channel in ("a", "b"):
        await engine.subscribe(channel)
    async with other.transaction():
        for channel in ("a", "b"):
            await other.execute(
                f"""SELECT "{namespace}".publish('{channel}', repeat(n::text, 700)) """
                "FROM generate_series(1, 9) n"
            )
    for channel in ("a", "b"):
        await collector.heard(channel, [str(n) * 700 for n in range(1, 10)])


async def test_what_no_notification_tells_of_is_found(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat")
    async with other.transaction():
        # A publication as it would be if the notification had been lost.
        await other.execute(f"""SELECT "{namespace}".publish('elsewhere', '1')""")
        await other.execute(f"""
            INSERT INTO "{namespace}".streams (channel, sequence, base, epoch) VALUES ('chat', 5, 0, '');
            UPDATE "{namespace}".publications SET channel = 'chat', sequence = 5 WHERE channel = 'elsewhere'
        """)
    await collector.heard("chat", ["1"])


# Presence


def enters(channel: str, connection: str) -> PresenceChange:
    return PresenceChange(channel, connection, connection.encode())


def leaves(channel: str, connection: str) -> PresenceChange:
    return PresenceChange(channel, connection, None)


async def test_of_one_who_dies_while_removing_a_lease_another_takes_over(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    assert await engine.update_presence("one", 0, [enters("chat", "a")], begin=True)
    transaction = other.transaction()
    await transaction.start()
    assert len(await other.fetch(f'SELECT * FROM "{namespace}".expire_presence(-1)')) == 1
    # It is at it, and nobody waits for it.
    assert list(await engine.expire_presence(-1)) == []
    await transaction.rollback()
    assert list(await engine.expire_presence(-1)) == [leaves("chat", "a")]


async def test_a_lease_that_is_being_renewed_is_not_removed(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    assert await engine.update_presence("one", 0, [enters("chat", "a")], begin=True)
    async with other.transaction():
        await other.execute(
            f"""SELECT "{namespace}".update_presence('one', 60, false, '{{}}', '{{}}', '{{}}')"""
        )
        assert list(await engine.expire_presence(-1)) == []
    assert list(await engine.expire_presence(0)) == []
    assert list(await engine.presence("chat")) == ["a"]


async def test_who_enters_again_while_the_old_lease_is_removed_stays(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    entered = [enters("chat", name) for name in "abc"]
    assert await engine.update_presence("old", 0, entered, begin=True)
    async with other.transaction():
        await other.execute(
            f"""SELECT "{namespace}".update_presence('new', 60, true, '{{chat}}', '{{b}}', '{{new}}')"""
        )
        removing = asyncio.create_task(engine.expire_presence(-1))
        await until(other, "EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    assert sorted(await removing) == [leaves("chat", "a"), leaves("chat", "c")]
    assert await engine.presence("chat") == {"b": b"new"}


async def test_nobody_waits_for_somebody_who_waits_for_him(
    node: tuple[PostgresEngine, Collector], postgres_url: str, other: Any, namespace: str
) -> None:
    """The same connections come and go under leases of several nodes, which are removed meanwhile. PostgreSQL
    ends one of two that wait for each other with an error."""
    engine, _ = node
    keys = [(f"room:{room}", str(connection)) for room in range(10) for connection in range(10)]

    async def come_and_go(engine: PostgresEngine, name: str) -> None:
        random = Random(name)
        for number in range(25):
            changes = [
                PresenceChange(*key, name.encode() if random.random() < 0.7 else None)
                for key in random.sample(keys, 60)
            ]
            # Every other lease lapses at once.
            lease = f"{name}:{number}"
            assert await engine.update_presence(lease, 60 * (number % 2), changes[:30], begin=True)
            # It may have been removed already.
            await engine.update_presence(lease, 60 * (number % 2), changes[30:])

    async def remove(engine: PostgresEngine) -> None:
        for _ in range(50):
            await engine.expire_presence(0)

    async with asyncio.timeout(DEADLINE), started(postgres_url, namespace) as (second, _):
        await asyncio.gather(
            *(come_and_go(each, f"{number}") for number, each in enumerate([engine, second] * 3)),
            *(remove(each) for each in (engine, second)),
        )
        await engine.expire_presence(-1)
        left = await second.expire_presence(-60)
    assert left
    for table in ("leases", "presence"):
        assert await other.fetchval(f'SELECT count(*) FROM "{namespace}".{table}') == 0


# Healing


@needs_own_server
async def test_a_server_that_comes_back_is_found_again(
    node: tuple[PostgresEngine, Collector], postgres: PostgresServer
) -> None:
    engine, collector = node
    await engine.subscribe("chat", HISTORY)
    await engine.subscribe("plain")
    await engine.publish(publication("chat", "1"), HISTORY)
    await collector.heard("chat", ["1"])
    assert await engine.update_presence("lease", 60, [enters("chat", "a")], begin=True)
    assert collector.disconnects == 0
    await asyncio.to_thread(postgres.stop)
    try:
        await collector.until(lambda: collector.disconnects == 1)
        for _ in range(2):
            async with asyncio.timeout(address.DEADLINE + 5):
                with pytest.raises(EngineUnavailable):
                    await engine.publish(publication("chat", "lost"), HISTORY)
            async with asyncio.timeout(address.DEADLINE + 5):
                with pytest.raises(EngineUnavailable):
                    await engine.history("chat")
            async with asyncio.timeout(address.DEADLINE + 5):
                with pytest.raises(EngineUnavailable):
                    await engine.update_presence("lease", 60)
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{postgres.port}/postgres"):
            await PostgresEngine(postgres.url).start(Collector())
        # However often it is tried, it is away once.
        assert (collector.disconnects, collector.reconnects) == (1, 0)
    finally:
        await asyncio.to_thread(postgres.start)
    position = await publish_when_possible(engine, "chat", "2")
    await engine.publish(publication("plain", "3"))
    await collector.heard("chat", ["1", "2"])
    await collector.heard("plain", ["3"])
    assert (collector.disconnects, collector.reconnects) == (1, 1)
    assert await engine.update_presence("lease", 60)
    assert list(await engine.presence("chat")) == ["a"]
    assert [each.offset for each in collector.publications if each.channel == "chat"] == [1, 2]
    assert (await engine.history("chat")).position == position


async def test_a_listener_that_is_cut_off_listens_again(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat")
    await engine.subscribe("kept", HISTORY)
    for number in range(1, 4):
        assert engine._listening is not None
        await other.execute("SELECT pg_terminate_backend($1)", engine._listening.get_server_pid())
        # What is published meanwhile by others is not lost either.
        await other.execute(f"""SELECT "{namespace}".publish('chat', '{number}')""")
        await collector.until(lambda n=number: collector.reconnects == n)  # type: ignore[misc]
        assert collector.disconnects == number
        await publish_when_possible(engine, "kept", str(number))
    await collector.heard("chat", ["1", "2", "3"])
    await collector.heard("kept", ["1", "2", "3"])


class Troubled(Collector):
    """A node that does not take it well."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def on_disconnect(self, reason: str) -> None:
        super().on_disconnect(reason)
        self.reasons.append(reason)
        raise RuntimeError("what now?")


async def test_a_node_that_fails_when_it_is_told_does_not_keep_the_engine_from_healing(
    other: Any, postgres_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine, collector = PostgresEngine(postgres_url, namespace), Troubled()
    await engine.start(collector)
    assert engine._listening is not None
    await other.execute("SELECT pg_terminate_backend($1)", engine._listening.get_server_pid())
    await collector.until(lambda: collector.reconnects == 1)
    assert len(collector.reasons) == 1
    assert collector.reasons[0].startswith("Lost PostgreSQL at ")
    assert "what now?" in caplog.text
    await engine.stop()
    assert len(collector.reasons) == 1


class DeafEngine(PostgresEngine):
    """Its connection answers, but does not tell of notifications."""

    is_deaf = False

    def _on_notify(self, connection: object, pid: int, name: str, payload: object) -> None:
        if not self.is_deaf:
            super()._on_notify(connection, pid, name, payload)


async def test_who_does_not_hear_does_not_publish_and_connects_again(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, namespace: str
) -> None:
    monkeypatch.setattr(module, "HEARING_CHECK", 0.1)
    monkeypatch.setattr(module, "DEADLINE", 1.0)
    engine, collector = DeafEngine(postgres_url, namespace), Collector()
    await engine.start(collector)
    await engine.subscribe("chat")
    engine.is_deaf = True
    await collector.until(lambda: collector.disconnects == 1)
    assert not engine._hearing.is_set()
    with pytest.raises(EngineUnavailable, match=r"Lost .*do not arrive|cannot be used: LISTEN"):
        await engine.publish(publication("chat", "0"))
    engine.is_deaf = False
    await collector.until(lambda: collector.reconnects == 1)
    await engine.publish(publication("chat", "1"))
    await collector.heard("chat", ["1"])
    await engine.stop()


async def test_where_one_cannot_listen_one_cannot_start(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, namespace: str
) -> None:
    monkeypatch.setattr(module, "DEADLINE", 1.0)
    engine, collector = DeafEngine(postgres_url, namespace), Collector()
    engine.is_deaf = True
    with pytest.raises(EngineUnavailable, match=r"LISTEN does not work there.*'\?listen=host:port'"):
        await engine.start(collector)
    assert (collector.disconnects, collector.reconnects) == (0, 0)


async def test_tables_that_are_dropped_are_made_again(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    before = await engine.subscribe("chat", HISTORY)
    await engine.subscribe("plain")
    await engine.publish(publication("chat", "1"), HISTORY)
    await engine.publish(publication("plain", "1"))
    await collector.heard("plain", ["1"])
    assert await engine.update_presence("lease", 60, [enters("chat", "a")], begin=True)
    await other.execute(f'DROP SCHEMA "{namespace}" CASCADE')
    await collector.until(lambda: collector.reconnects == 1)
    assert collector.disconnects == 1
    assert not await engine.update_presence("lease", 60)
    after = await publish_when_possible(engine, "chat", "2")
    await engine.publish(publication("plain", "2"))
    assert after.offset == 1
    assert after.epoch != before.epoch
    await collector.heard("chat", ["1", "2"])
    await collector.heard("plain", ["1", "2"])


async def test_a_stream_that_was_set_back_is_read_on(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("plain")
    await engine.publish(publication("plain", "1"))
    await collector.heard("plain", ["1"])
    # As it would be if it came back without what it committed last.
    await other.execute(f"""
        UPDATE "{namespace}".streams SET sequence = 1, base = 1;
        DELETE FROM "{namespace}".publications
    """)
    await collector.until(lambda: collector.reconnects == 1)
    # It was never away.
    assert collector.disconnects == 0
    await engine.publish(publication("plain", "2"))
    await collector.heard("plain", ["1", "2"])


async def test_publishing_does_not_wait_longer_than_the_deadline_for_a_transaction(
    node: tuple[PostgresEngine, Collector], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, collector = node
    monkeypatch.setattr(module, "DEADLINE", 1.0)
    await engine.subscribe("chat")
    await engine.subscribe("other")
    async with asyncpg_connection(postgres_url) as using:
        await engine.publish_in(publication("chat", "1"), None, None, using)
        with pytest.raises(EngineUnavailable, match="still open"):
            await engine.publish(publication("chat", "2"))
        # Other channels go on.
        await engine.publish(publication("other", "1"))
    await engine.publish(publication("chat", "3"))
    await collector.until(lambda: "3" in collector.texts("chat"))
    # What raised may have been accepted, in the moment in which it was given up.
    assert collector.texts("chat") in (["1", "3"], ["1", "2", "3"])


# Start


async def test_two_that_start_at_once_make_one_schema(postgres_url: str, namespace: str) -> None:
    async with asyncio.timeout(DEADLINE):
        engines = [PostgresEngine(postgres_url, namespace) for _ in range(5)]
        collectors = [Collector() for _ in engines]
        await asyncio.gather(
            *(engine.start(collector) for engine, collector in zip(engines, collectors, strict=True))
        )
        for engine in engines:
            await engine.subscribe("chat")
        await engines[0].publish(publication("chat", "1"))
        for collector in collectors:
            await collector.heard("chat", ["1"])
        await asyncio.gather(*(engine.stop() for engine in engines))


async def make_version_1(connection: Any, namespace: str) -> None:
    sql = (Path(__file__).parent / "schemas" / "postgres-1.sql").read_text(encoding="utf-8")
    await connection.execute(f'CREATE SCHEMA "{namespace}"')
    await connection.execute(sql.replace("{schema}", f'"{namespace}"').replace("{name}", f"'{namespace}'"))


async def test_a_schema_of_version_1_is_taken_over_while_it_is_in_use(
    other: Any, postgres_url: str, namespace: str
) -> None:
    await make_version_1(other, namespace)
    append = f'SELECT * FROM "{namespace}".append($1, $2, $3, $4, $5, $6, $7, $8)'
    first = await other.fetchrow(append, "chat", b"1", "text", 100, 60.0, "key", None, "id 1")
    async with asyncio.timeout(DEADLINE), AsyncExitStack() as stack:
        # Somebody has published, and not committed yet.
        async with asyncpg_connection(postgres_url) as using:
            await using.execute(f"""SELECT "{namespace}".publish('chat', '2')""")
            engines = [PostgresEngine(postgres_url, namespace) for _ in range(5)]
            collectors = [Collector() for _ in engines]
            # Several at once: one does it, the others wait for it.
            await asyncio.gather(
                *(engine.start(collector) for engine, collector in zip(engines, collectors, strict=True))
            )
            for engine in engines:
                stack.push_async_callback(engine.stop)
                assert await engine.subscribe("chat", HISTORY) == Position(*first)
                page = await engine.history("chat")
                assert [(each.id, each.data) for each in page.publications] == [("id 1", b"1")]
        for collector in collectors:
            await collector.heard("chat", ["2"])
        state = await other.fetchrow(f'SELECT version, usable_from FROM "{namespace}".state')
        assert tuple(state) == (2, 2)
        assert await engines[0].publish(publication("chat", "1"), HISTORY, "key") == Position(*first)
        assert await engines[0].publish(publication("chat", "3")) == (3, first["epoch"])
        # What a worker of version 1 that has been there all the time does.
        row = await other.fetchrow(append, "chat", b"4", "text", None, None, None, None, "id 4")
        assert tuple(row) == (4, first["epoch"])
        row = await other.fetchrow(f'SELECT * FROM "{namespace}".declare($1, $2, $3)', "chat", 50, 30.0)
        assert (row["sequence"] - row["base"], row["size"]) == (4, 50)
        for collector in collectors:
            await collector.heard("chat", ["2", "3", "4"])
        assert await engines[0].update_presence("lease", 60, [enters("chat", "a")], begin=True)
        assert list(await engines[1].presence("chat")) == ["a"]


async def test_who_may_not_change_a_schema_of_version_1_is_told_who_may(
    other: Any, postgres_url: str, namespace: str
) -> None:
    await make_version_1(other, namespace)
    role = f"role_{token_hex(4)}"
    await other.execute(f"""
        CREATE ROLE {role} LOGIN;
        GRANT USAGE ON SCHEMA "{namespace}" TO {role};
        GRANT ALL ON ALL TABLES IN SCHEMA "{namespace}" TO {role}
    """)
    parts = urlsplit(postgres_url)
    url = parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()
    with pytest.raises(EngineUnavailable, match=r"from version 1 to 2 .* Start .* as the schema's owner\."):
        await PostgresEngine(url, namespace).start(Collector())
    assert await other.fetchval(f'SELECT version FROM "{namespace}".state') == 1
    async with started(postgres_url, namespace):
        pass


async def test_a_schema_of_a_newer_version_is_left_alone(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    await other.execute(f'UPDATE "{namespace}".state SET version = 99, usable_from = 98')
    with pytest.raises(EngineUnavailable, match=r"of version 99, but .* knows 2\. Upgrade Hubbub"):
        await PostgresEngine(postgres_url, namespace).start(Collector())
    # One that says that we can use it is used as it is.
    await other.execute(f'UPDATE "{namespace}".state SET usable_from = 2')
    async with started(postgres_url, namespace) as (engine, collector):
        await engine.subscribe("chat")
        await engine.publish(publication("chat", "1"))
        await collector.heard("chat", ["1"])
    assert await other.fetchval(f'SELECT version FROM "{namespace}".state') == 99


async def test_who_may_not_make_the_schema_is_told_what_to_run(
    other: Any, postgres_url: str, namespace: str
) -> None:
    role = f"role_{token_hex(4)}"
    await other.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'")
    parts = urlsplit(postgres_url)
    address = parts.netloc.rpartition("@")[2]
    url = parts._replace(netloc=f"{role}:secret-word@{address}").geturl()
    with pytest.raises(EngineUnavailable) as caught:
        await PostgresEngine(url, namespace).start(Collector())
    assert "secret-word" not in str(caught.value)
    command = re.search(r"run: (CREATE SCHEMA .*?;)", str(caught.value))
    assert command is not None
    await other.execute(command[1])
    async with started(url, namespace) as (engine, collector):
        await engine.subscribe("chat")
        await engine.publish(publication("chat", "1"))
        await collector.heard("chat", ["1"])


async def test_nobody_there() -> None:
    port = free_port()
    with pytest.raises(EngineUnavailable) as caught:
        await PostgresEngine(f"postgresql://user:secret-word@127.0.0.1:{port}/shop").start(Collector())
    assert f"127.0.0.1:{port}/shop" in str(caught.value)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret/p8w@localhost/shop",
        "postgresql://user:12/p8w@localhost/shop",
        "postgresql://user:secret#p8w@localhost/shop",
        "postgresql://[user:secret@localhost/shop",
        "postgresql://user:secret",
        "postgresql://user:p8w@localhost:secret/shop",
        "postgresql://user:secret@localhost/shop?pool_size=0",
        "postgresql://user:secret@localhost/shop?pool_size=many",
        "postgresql://user:secret@localhost/shop?statement_cache_size=-1",
        "postgresql://user:secret@localhost/shop?listen=somewhere",
    ],
)
def test_what_is_wrong_with_a_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        engine_for(url)
    for part in ("secret", "p8w", "12"):
        assert part not in str(caught.value)


@pytest.mark.parametrize("name", ["", "pg_catalog", "a b", 'a"b', "x" * 64, "a'b"])
def test_a_namespace_names_a_schema(name: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        PostgresEngine("postgresql://localhost/shop", name)


async def test_an_engine_that_is_not_started_says_so(namespace: str) -> None:
    engine = PostgresEngine("postgresql://localhost/shop", namespace)
    with pytest.raises(HubNotRunning):
        await engine.publish(publication("chat", "1"))
    with pytest.raises(HubNotRunning):
        await engine.subscribe("chat")


async def test_parameters_of_the_url(postgres_url: str, namespace: str) -> None:
    parts = urlsplit(postgres_url)
    listen = parts.netloc.rpartition("@")[2]
    query = f"statement_cache_size=0&pool_size=2&listen={listen}&application_name=ours"
    async with started(parts._replace(query=query).geturl(), namespace) as (engine, collector):
        await engine.subscribe("chat")
        await asyncio.gather(*(engine.publish(publication("chat", "1")) for _ in range(10)))
        await collector.heard("chat", ["1"] * 10)
        assert await engine.update_presence("lease", 0, [enters("chat", "a")], begin=True)
        assert await engine.presence("chat") == {"a": b"a"}
        assert list(await engine.expire_presence(-1)) == [leaves("chat", "a")]
        assert not await engine.update_presence("lease", 60)


# Removing what has expired


async def test_what_has_expired_is_removed_in_steps(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    engine, _ = node
    schema = f'"{namespace}"'
    for number in range(10):
        await engine.publish(publication("plain", str(number)), None, f"key {number}")
    await engine.publish(publication("kept", "1"), HISTORY)
    async with asyncpg_connection(postgres_url) as using:
        await engine.publish_in(publication("late", "1"), None, None, using)
        seen = await other.fetchval("SELECT pg_current_snapshot()::text")
    # Published before the snapshot, but committed after it: it has not been handed over for long.
    await other.execute(
        f"UPDATE {schema}.publications SET expires = now() - interval '1 min' WHERE channel <> 'kept'"
    )
    # An update would be another transaction's.
    await other.execute(f"UPDATE {schema}.publications SET expires = expires")

    async def prune(limit: int) -> int:
        count: int = await other.fetchval(f"SELECT {schema}.prune($1::text::pg_snapshot, $2)", seen, limit)
        return count

    assert await prune(6) == 6
    assert await prune(6) == 4
    assert await prune(6) == 0
    assert {row["channel"] for row in await other.fetch(f"SELECT * FROM {schema}.publications")} == {
        "kept",
        "late",
    }
    await other.execute(f"UPDATE {schema}.keys SET expires = now() - interval '1 min'")
    assert await prune(100) == 10
    # However that is: after an hour it is removed.
    await other.execute(f"UPDATE {schema}.publications SET expires = now() - interval '2 hours'")
    assert await prune(100) == 2


async def test_publishing_removes_what_is_too_much(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    for number in range(100):
        await engine.publish(publication("chat", str(number)), History(size=5, ttl=60))
    assert await other.fetchval(f'SELECT count(*) FROM "{namespace}".publications') < 25


async def test_the_engine_prunes_by_itself(
    monkeypatch: pytest.MonkeyPatch, other: Any, postgres_url: str, namespace: str
) -> None:
    monkeypatch.setattr(module, "PRUNE", 0.1)
    for each in (module, schema):
        monkeypatch.setattr(each, "HANDOVER", 0.1)
    monkeypatch.setattr(module, "PRUNE_STREAMS", 0.1)
    async with started(postgres_url, namespace) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        await engine.publish(publication("plain", "1"))
        await until(other, f'NOT EXISTS (SELECT FROM "{namespace}".publications)')
        await other.execute(f"""UPDATE "{namespace}".streams SET used = now() - interval '1 day'""")
        await until(other, f"""NOT EXISTS (SELECT FROM "{namespace}".streams WHERE channel = 'plain')""")
        # The stream that is subscribed to stays; the other one begins anew.
        assert (await engine.history("chat")).position.epoch
        await engine.subscribe("plain")
        await engine.publish(publication("plain", "2"))
        await collector.heard("plain", ["2"])
