"""The functions of the database: publishing from SQL, and reading positions."""

from __future__ import annotations

import json
from secrets import token_hex
from typing import Any

import asyncpg
import pytest

from hubbub.core.publication import START, Position
from hubbub.engines.postgres import PostgresEngine
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.postgres.nodes import asyncpg_connection


async def test_every_kind_of_data_can_be_published(
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
async def test_wrong_arguments_are_refused(
    arguments: str, node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    with pytest.raises(asyncpg.PostgresError):
        await other.execute(f'SELECT "{namespace}".publish({arguments})')


async def test_internal_channels_are_closed_to_other_clients(
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
        with pytest.raises(ValueError, match="without control characters"):
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


async def test_a_user_with_usage_of_the_schema_may_publish_and_nothing_else(
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


# Positions


async def test_the_position_of_a_channel_is_that_of_its_last_publication(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    read = f'SELECT "{namespace}".position($1)'
    assert await other.fetchval(read, "kept") == "start" == str(START)
    await engine.publish(publication("plain", "1"))
    assert await other.fetchval(read, "plain") == "start"
    declared, _ = await engine.subscribe("kept", HISTORY)
    assert await other.fetchval(read, "kept") == str(declared)
    for number in range(3):
        position = await engine.publish(publication("kept", str(number)), HISTORY)
        assert await other.fetchval(read, "kept") == str(position) == f"{number + 1}:{declared.epoch}"
    assert await other.fetchval(f'SELECT "{namespace}".position(channel => $1)', "kept") == str(position)
    await engine.remove_history("kept")
    (top,) = await engine.tops(["kept"])
    assert top.position.epoch != declared.epoch
    assert await other.fetchval(read, "kept") == str(top.position)


async def test_a_position_is_of_the_moment_of_its_statement(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    engine, _ = node
    first = await engine.publish(publication("kept", "1"), HISTORY)
    schema = f'"{namespace}"'
    # What the statement itself publishes, its other parts do not see either.
    row = await other.fetchrow(
        f"""SELECT {schema}.position('kept') AS before, p."offset", {schema}.position('kept') AS after
        FROM {schema}.publish('kept', '2') AS p"""
    )
    assert tuple(row) == (str(first), 2, str(first))
    second = Position(2, first.epoch)
    async with asyncpg_connection(postgres_url) as using:
        # This transaction sees what it has published, and no other one does before the commit.
        await using.execute(f"SELECT {schema}.publish('kept', '3')")
        third = str(Position(3, first.epoch))
        assert await using.fetchval(f"SELECT {schema}.position('kept')") == third
        assert await other.fetchval(f"SELECT {schema}.position('kept')") == str(second)
        assert (await engine.tops(["kept"]))[0].position == second
    assert await other.fetchval(f"SELECT {schema}.position('kept')") == third
    # In a transaction that sees one moment, the position stays.
    async with other.transaction(isolation="repeatable_read"):
        assert await other.fetchval(f"SELECT {schema}.position('kept')") == third
        await engine.publish(publication("kept", "4"))
        assert await other.fetchval(f"SELECT {schema}.position('kept')") == third
    assert await other.fetchval(f"SELECT {schema}.position('kept')") == str(Position(4, first.epoch))


async def test_a_user_with_usage_of_the_schema_reads_positions_and_no_publications(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, _ = node
    position = await engine.publish(publication("kept", "1"), HISTORY)
    role = f"role_{token_hex(4)}"
    await other.execute(f'CREATE ROLE {role}; GRANT USAGE ON SCHEMA "{namespace}" TO {role}; SET ROLE {role}')
    assert await other.fetchval(f"""SELECT "{namespace}".position('kept')""") == str(position)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await other.fetchval(f'SELECT "offset" FROM "{namespace}".publications')
    # The search path of the caller does not decide what the function reads.
    await other.execute(
        "CREATE TEMP TABLE streams (channel text, sequence bigint); SET search_path = pg_temp"
    )
    assert await other.fetchval(f"""SELECT "{namespace}".position('kept')""") == str(position)


@pytest.mark.parametrize("channel", ["NULL", "''", "repeat('x', 256)", "E'\\x01control'"])
async def test_channels_without_positions_are_refused(
    channel: str, node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="Expected a channel of 1 to 255 characters"):
        await other.execute(f'SELECT "{namespace}".position({channel})')
