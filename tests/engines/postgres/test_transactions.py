"""Publishing as a part of the application's transaction."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from hubbub import Hub
from hubbub.core.publication import START
from hubbub.engines.memory import MemoryEngine
from hubbub.engines.postgres import PostgresEngine
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.postgres.nodes import RollBack, Using, asyncpg_connection


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


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_transaction_publishes_once_with_its_commit_and_not_with_a_rollback(
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


async def test_other_statements_of_the_transaction_are_committed_with_the_publication(
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


@pytest.mark.parametrize("using", [object(), psycopg.Connection, "postgresql://"])
async def test_the_error_of_an_unknown_connection_lists_the_known_ones(
    using: object, node: tuple[PostgresEngine, Collector]
) -> None:
    with pytest.raises(TypeError, match=r"asyncpg, an AsyncConnection of psycopg, .* of SQLAlchemy, but got"):
        await node[0].publish_in(publication("chat", "1"), None, None, using)


async def test_a_pool_is_not_a_transaction(node: tuple[PostgresEngine, Collector], postgres_url: str) -> None:
    async with asyncpg.create_pool(postgres_url, min_size=1) as pool:
        with pytest.raises(TypeError, match=r"but got asyncpg\.pool\.Pool"):
            await node[0].publish_in(publication("chat", "1"), None, None, pool)


async def test_other_engines_refuse_a_transaction() -> None:
    async with Hub() as hub:
        assert isinstance(hub.engine, MemoryEngine)
        with pytest.raises(TypeError, match=r"'postgresql://'.*MemoryEngine"):
            await hub.publish("chat", "1", using=object())
