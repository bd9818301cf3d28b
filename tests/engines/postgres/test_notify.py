"""``?notify=off``: publications are polled for, and not announced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hubbub.engines.postgres import PostgresEngine
from hubbub.testing.engine_contract import DEADLINE, HISTORY, Collector, publication
from tests.engines.postgres.nodes import cut_off_listener, publish_when_possible, started, with_parameters
from tests.engines.postgres.test_transactions import DRIVERS


@pytest.fixture
async def silent(postgres_url: str, namespace: str) -> AsyncIterator[tuple[PostgresEngine, Collector]]:
    async with started(with_parameters(postgres_url, "notify=off"), namespace) as node:
        yield node


@pytest.mark.parametrize("history", [None, HISTORY])
async def test_nodes_with_and_without_notifications_receive_publications_of_each_other_and_of_sql(
    history: Any,
    node: tuple[PostgresEngine, Collector],
    silent: tuple[PostgresEngine, Collector],
    other: Any,
    namespace: str,
) -> None:
    for engine, _ in (node, silent):
        await engine.subscribe("chat", history)
    for text, (engine, _) in (("1", node), ("2", silent)):
        await engine.publish(publication("chat", text), history)
    await other.execute(f"""SELECT "{namespace}".publish('chat', '3')""")
    await other.execute(f"""SET hubbub.notify = off; SELECT "{namespace}".publish('chat', '4')""")
    for _, collector in (node, silent):
        await collector.heard("chat", ["1", "2", "3", "4"])
        assert (collector.disconnects, collector.reconnects) == (0, 0)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_publications_are_not_announced(
    driver: str,
    silent: tuple[PostgresEngine, Collector],
    other: Any,
    postgres_url: str,
    namespace: str,
) -> None:
    engine, collector = silent
    announced: asyncio.Queue[str] = asyncio.Queue()
    await other.add_listener(namespace, lambda *arguments: announced.put_nowait(arguments[3]))
    for channel in ("published", "in a transaction"):
        await engine.subscribe(channel, HISTORY)
    position = await engine.publish(publication("published", "1"), HISTORY)
    async with DRIVERS[driver](postgres_url) as using:
        first = await engine.publish_in(publication("in a transaction", "1"), HISTORY, "key", using)
        assert await engine.publish_in(publication("in a transaction", "1"), HISTORY, "key", using) == first
    assert position.offset == first.offset == 1
    await collector.heard("published", ["1"])
    await collector.heard("in a transaction", ["1"])
    # Notifications arrive in the order of commits: the first is none of the publications above.
    await other.execute(f"""SELECT "{namespace}".publish('announced', '1')""")
    async with asyncio.timeout(DEADLINE):
        assert await announced.get() == "announced"


async def test_a_listener_whose_connection_is_terminated_reconnects(
    silent: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = silent
    await engine.subscribe("chat")
    await cut_off_listener(other, namespace)
    await other.execute(f"""SELECT "{namespace}".publish('chat', '1')""")
    await collector.until(lambda: collector.reconnects == 1)
    await publish_when_possible(engine, "kept", "1")
    await other.execute(f"""SELECT "{namespace}".publish('chat', '2')""")
    await collector.heard("chat", ["1", "2"])


async def test_it_works_where_statements_cannot_be_prepared(
    postgres_url: str, namespace: str, other: Any
) -> None:
    url = with_parameters(postgres_url, "notify=off&statement_cache_size=0")
    async with started(url, namespace) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        await engine.publish(publication("chat", "1"), HISTORY)
        await other.execute(f"""SELECT "{namespace}".publish('chat', '2')""")
        await collector.heard("chat", ["1", "2"])
        assert "notify=off" in " ".join(each.text for each in await engine.inspect())
