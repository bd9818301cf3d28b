"""The schema: creating and upgrading it, and starts that fail because of it."""

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
from hubbub.engines.postgres import PostgresEngine
from hubbub.exceptions import EngineUnavailable, HubNotRunning
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.clients import DEADLINE
from tests.engines.postgres.nodes import (
    asyncpg_connection,
    enters,
    started,
)
from tests.uvicorn_process import free_port


async def test_engines_that_start_at_once_create_one_schema(postgres_url: str, namespace: str) -> None:
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


async def test_a_schema_of_version_1_is_upgraded_while_it_is_in_use(
    other: Any, postgres_url: str, namespace: str
) -> None:
    await make_version_1(other, namespace)
    append = f'SELECT * FROM "{namespace}".append($1, $2, $3, $4, $5, $6, $7, $8)'
    first = await other.fetchrow(append, "chat", b"1", "text", 100, 60.0, "key", None, "id 1")
    async with asyncio.timeout(DEADLINE), AsyncExitStack() as stack:
        # A transaction has published, and not committed yet.
        async with asyncpg_connection(postgres_url) as using:
            await using.execute(f"""SELECT "{namespace}".publish('chat', '2')""")
            engines = [PostgresEngine(postgres_url, namespace) for _ in range(5)]
            collectors = [Collector() for _ in engines]
            # Several at once: one upgrades the schema, the others wait for it.
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
        assert tuple(state) == (4, 2)
        assert await engines[0].publish(publication("chat", "1"), HISTORY, "key") == Position(*first)
        assert await engines[0].publish(publication("chat", "3")) == (3, first["epoch"])
        # The statements of a worker of version 1 that was started before the upgrade.
        row = await other.fetchrow(append, "chat", b"4", "text", None, None, None, None, "id 4")
        assert tuple(row) == (4, first["epoch"])
        row = await other.fetchrow(f'SELECT * FROM "{namespace}".declare($1, $2, $3)', "chat", 50, 30.0)
        assert (row["sequence"] - row["base"], row["size"]) == (4, 50)
        for collector in collectors:
            await collector.heard("chat", ["2", "3", "4"])
        assert await engines[0].update_presence("lease", 60, [enters("chat", "a")], begin=True)
        assert list(await engines[1].presence("chat")) == ["a"]


async def test_a_user_without_the_right_to_upgrade_the_schema_is_referred_to_its_owner(
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
    with pytest.raises(EngineUnavailable, match=r"from version 1 to 4 .* Start .* as the schema's owner\."):
        await PostgresEngine(url, namespace).start(Collector())
    assert await other.fetchval(f'SELECT version FROM "{namespace}".state') == 1
    async with started(postgres_url, namespace):
        pass


async def test_a_schema_of_a_newer_version_is_not_changed(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    await other.execute(f'UPDATE "{namespace}".state SET version = 99, usable_from = 98')
    with pytest.raises(EngineUnavailable, match=r"of version 99, but .* knows 4\. Upgrade Hubbub"):
        await PostgresEngine(postgres_url, namespace).start(Collector())
    # A schema that says that version 4 can use it is used as it is.
    await other.execute(f'UPDATE "{namespace}".state SET usable_from = 2')
    async with started(postgres_url, namespace) as (engine, collector):
        await engine.subscribe("chat")
        await engine.publish(publication("chat", "1"))
        await collector.heard("chat", ["1"])
    assert await other.fetchval(f'SELECT version FROM "{namespace}".state') == 99


async def test_the_error_of_a_user_without_rights_has_the_command_that_grants_them(
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


async def test_a_server_that_does_not_answer() -> None:
    port = free_port()
    with pytest.raises(EngineUnavailable) as caught:
        await PostgresEngine(f"postgresql://user:secret-word@127.0.0.1:{port}/shop").start(Collector())
    assert f"127.0.0.1:{port}/shop" in str(caught.value)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "pg_catalog", "a b", 'a"b', "x" * 64, "a'b"])
def test_a_namespace_that_no_schema_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        PostgresEngine("postgresql://localhost/shop", name)


async def test_an_engine_that_has_not_been_started_raises(namespace: str) -> None:
    engine = PostgresEngine("postgresql://localhost/shop", namespace)
    with pytest.raises(HubNotRunning):
        await engine.publish(publication("chat", "1"))
    with pytest.raises(HubNotRunning):
        await engine.subscribe("chat")
