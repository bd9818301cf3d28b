"""Starting: making the schema, bringing it to our version, and what is in the way of that."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import pytest

from hubbub.core.publication import Position
from hubbub.engines import engine_for
from hubbub.engines.postgres import PostgresEngine
from hubbub.exceptions import EngineUnavailable, HubNotRunning, InvalidURL
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.clients import DEADLINE
from tests.engines.postgres.nodes import (
    asyncpg_connection,
    enters,
    leaves,
    started,
)
from tests.uvicorn_process import free_port


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
    sql = Path(__file__).with_name("version-1.sql").read_text(encoding="utf-8")
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
                assert (await engine.subscribe("chat", HISTORY)).position == Position(*first)
                page = await engine.history("chat")
                assert [(each.id, each.data) for each in page.publications] == [("id 1", b"1")]
        for collector in collectors:
            await collector.heard("chat", ["2"])
        state = await other.fetchrow(f'SELECT version, usable_from FROM "{namespace}".state')
        assert tuple(state) == (3, 2)
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
    with pytest.raises(EngineUnavailable, match=r"from version 1 to 3 .* Start .* as the schema's owner\."):
        await PostgresEngine(url, namespace).start(Collector())
    assert await other.fetchval(f'SELECT version FROM "{namespace}".state') == 1
    async with started(postgres_url, namespace):
        pass


async def test_a_schema_of_a_newer_version_is_left_alone(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    await other.execute(f'UPDATE "{namespace}".state SET version = 99, usable_from = 98')
    with pytest.raises(EngineUnavailable, match=r"of version 99, but .* knows 3\. Upgrade Hubbub"):
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
        "postgresql://user:secret@localhost/shop?notify=no",
        "postgresql://user:secret@localhost/shop?notify=",
        "postgresql://user:secret@localhost/shop?notify=off&listen=localhost:5432",
        "postgresql://user:secret@localhost/shop?channel_binding=require",
        "postgresql://user:12@localhost/shop?p8w=secret",
    ],
)
def test_what_is_wrong_with_a_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        engine_for(url)
    for part in ("secret", "p8w", "12"):
        assert part not in str(caught.value)


def test_a_parameter_that_is_not_known_is_answered_with_those_that_are() -> None:
    with pytest.raises(InvalidURL, match=r"pool_size, .* Is 'notify' meant\?"):
        engine_for("postgresql://localhost/shop?notfy=off")
    with pytest.raises(InvalidURL, match="'listen' and 'notify=off'"):
        engine_for("postgresql://localhost/shop?notify=off&listen=localhost:5432")


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
