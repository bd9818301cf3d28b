"""The listener: outages, lost notifications, and tables that are dropped or set back."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from hubbub.engines.base import ANSWER_TIMEOUT
from hubbub.engines.postgres import PostgresEngine, connections, listener, requests
from hubbub.engines.postgres import engine as engine_module
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.postgres.nodes import (
    cut_off_listener,
    enters,
    needs_own_server,
    publish_when_possible,
    started,
)
from tests.engines.postgres.server import PostgresServer


@needs_own_server
async def test_the_engine_reconnects_to_a_server_that_was_stopped(
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
            async with asyncio.timeout(ANSWER_TIMEOUT + 5):
                with pytest.raises(EngineUnavailable):
                    await engine.publish(publication("chat", "lost"), HISTORY)
            async with asyncio.timeout(ANSWER_TIMEOUT + 5):
                with pytest.raises(EngineUnavailable):
                    await engine.history("chat")
            async with asyncio.timeout(ANSWER_TIMEOUT + 5):
                with pytest.raises(EngineUnavailable):
                    await engine.update_presence("lease", 60)
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{postgres.port}/postgres"):
            await PostgresEngine(postgres.url).start(Collector())
        # Reported once, however often reconnecting fails.
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


async def test_a_listener_whose_connection_is_terminated_reconnects(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat")
    await engine.subscribe("kept", HISTORY)
    ended: list[int] = []
    for number in range(1, 4):
        ended += await cut_off_listener(other, namespace, ended)
        # Publications of other clients in the meantime are not lost either.
        await other.execute(f"""SELECT "{namespace}".publish('chat', '{number}')""")
        await collector.until(lambda n=number: collector.reconnects == n)  # type: ignore[misc]
        assert collector.disconnects == number
        await publish_when_possible(engine, "kept", str(number))
    await collector.heard("chat", ["1", "2", "3"])
    await collector.heard("kept", ["1", "2", "3"])


class Failing(Collector):
    """A node that raises when it is notified of an outage."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def on_disconnect(self, reason: str) -> None:
        super().on_disconnect(reason)
        self.reasons.append(reason)
        raise RuntimeError("the node failed")


async def test_a_node_that_raises_on_an_outage_does_not_keep_the_engine_from_reconnecting(
    other: Any, postgres_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine, collector = PostgresEngine(postgres_url, namespace), Failing()
    await engine.start(collector)
    await cut_off_listener(other, namespace)
    await collector.until(lambda: collector.reconnects == 1)
    assert len(collector.reasons) == 1
    assert collector.reasons[0].startswith("Lost PostgreSQL at ")
    assert collector.reasons[0].endswith("; reconnecting.")
    assert "the node failed" in caplog.text
    await engine.stop()
    assert len(collector.reasons) == 1


class Deafness:
    """Whether connections that listen drop the notifications that they receive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_deaf = False
        add_listener = asyncpg.Connection.add_listener

        async def add_deaf_listener(connection: Any, channel: str, callback: Any) -> None:
            def hear(*arguments: Any) -> None:
                if not self.is_deaf:
                    callback(*arguments)

            await add_listener(connection, channel, hear)

        monkeypatch.setattr(asyncpg.Connection, "add_listener", add_deaf_listener)


@pytest.fixture
def deafness(monkeypatch: pytest.MonkeyPatch) -> Deafness:
    monkeypatch.setattr(connections, "ANSWER_TIMEOUT", 1.0)
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 1.0)
    monkeypatch.setattr(requests, "ANSWER_TIMEOUT", 1.0)
    monkeypatch.setattr(engine_module, "ANSWER_TIMEOUT", 1.0)
    monkeypatch.setattr(listener, "PROBE_EVERY", 0.1)
    return Deafness(monkeypatch)


async def test_a_node_that_receives_no_notifications_does_not_publish_and_reconnects(
    deafness: Deafness, postgres_url: str, namespace: str
) -> None:
    engine, collector = PostgresEngine(postgres_url, namespace), Collector()
    await engine.start(collector)
    await engine.subscribe("chat")
    deafness.is_deaf = True
    await collector.until(lambda: collector.disconnects == 1)
    with pytest.raises(EngineUnavailable, match=r"Lost .*do not arrive|cannot be used: LISTEN"):
        await engine.publish(publication("chat", "0"))
    deafness.is_deaf = False
    await collector.until(lambda: collector.reconnects == 1)
    await engine.publish(publication("chat", "1"))
    await collector.heard("chat", ["1"])
    await engine.stop()


async def test_an_engine_does_not_start_where_listening_does_not_work(
    deafness: Deafness, postgres_url: str, namespace: str
) -> None:
    engine, collector = PostgresEngine(postgres_url, namespace), Collector()
    deafness.is_deaf = True
    with pytest.raises(EngineUnavailable, match=r"LISTEN does not work there.*'\?listen=host:port'"):
        await engine.start(collector)
    assert (collector.disconnects, collector.reconnects) == (0, 0)


async def test_tables_that_are_dropped_are_created_again(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    before, _ = await engine.subscribe("chat", HISTORY)
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


async def test_a_schema_that_another_node_has_created_again_is_read(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat", HISTORY)
    await other.execute(f'DROP SCHEMA "{namespace}" CASCADE')
    async with started(postgres_url, namespace) as (second, _):
        await collector.until(lambda: collector.reconnects >= 1)
        assert (await second.publish(publication("chat", "1"))).offset == 1
        await collector.heard("chat", ["1"])


async def test_reading_continues_in_a_stream_that_was_set_back(
    node: tuple[PostgresEngine, Collector], other: Any, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("plain")
    await engine.publish(publication("plain", "1"))
    await collector.heard("plain", ["1"])
    # As of a server that was restored without its last commits.
    await other.execute(f"""
        UPDATE "{namespace}".streams SET sequence = 1, base = 1;
        DELETE FROM "{namespace}".publications
    """)
    await collector.until(lambda: collector.reconnects == 1)
    # There was no outage.
    assert collector.disconnects == 0
    await engine.publish(publication("plain", "2"))
    await collector.heard("plain", ["1", "2"])
