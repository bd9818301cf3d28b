"""Servers, connections, listeners and tables that go away."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from hubbub import Publisher
from hubbub.core.publication import START, Position
from hubbub.engines.postgres import PostgresEngine, address
from hubbub.engines.postgres import engine as module
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.clients import DEADLINE
from tests.engines.postgres.nodes import (
    asyncpg_connection,
    enters,
    needs_own_server,
    publish_when_possible,
    started,
)
from tests.engines.postgres.server import PostgresServer


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


DROPPED = 'DROP SCHEMA "{}" CASCADE'
EMPTIED = 'TRUNCATE "{0}".streams, "{0}".publications, "{0}".keys'


@pytest.mark.parametrize("loss", [DROPPED, EMPTIED])
async def test_histories_that_are_lost_are_declared_again(
    loss: str, node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    """Also for those who publish without knowing of them."""
    engine, collector = node
    channels = [f"room:{number}" for number in range(20)]
    before = [(await engine.subscribe(channel, HISTORY)).position for channel in channels]
    await engine.subscribe("plain")
    with Publisher(postgres_url, namespace=namespace) as publisher:
        for channel in channels:
            position = await asyncio.to_thread(publisher.publish, channel, "1")
            assert position.offset == 1
            await collector.heard(channel, ["1"])
        await other.execute(loss.format(namespace))
        await collector.until(lambda: collector.reconnects == 1)
        tops = await engine.tops([*channels, "plain"])
        assert all(top.position.epoch for top in tops[:-1])
        assert tops[-1].position == START
        for channel, (_, epoch) in zip(channels, before, strict=True):
            position = await publish_from_a_thread(publisher, channel, "2")
            assert position.offset == 1
            assert position.epoch not in ("", epoch)
            await collector.heard(channel, ["1", "2"])


async def test_a_schema_that_another_node_has_made_again_is_noticed(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str, namespace: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat", HISTORY)
    await other.execute(DROPPED.format(namespace))
    async with started(postgres_url, namespace) as (second, _):
        await collector.until(lambda: collector.reconnects >= 1)
        assert (await second.publish(publication("chat", "1"))).offset == 1
        await collector.heard("chat", ["1"])


async def test_a_history_that_is_lost_while_its_channel_is_locked_is_declared_later(
    node: tuple[PostgresEngine, Collector], other: Any, postgres_url: str
) -> None:
    engine, collector = node
    await engine.subscribe("chat", HISTORY)
    await engine.publish(publication("chat", "1"), HISTORY)
    async with asyncpg_connection(postgres_url) as using:
        await using.execute(f'DELETE FROM "{engine.namespace}".streams')
        await engine.publish_in(publication("chat", "2"), None, None, using)
    await collector.until(lambda: collector.reconnects >= 1)
    async with asyncpg_connection(postgres_url) as using:
        await other.execute(f'DELETE FROM "{engine.namespace}".streams')
        assert await engine.publish_in(publication("chat", "3"), None, None, using) == START
        reconnects = collector.reconnects
        await collector.until(lambda: collector.reconnects > reconnects)
        assert (await engine.tops(["chat"]))[0].position == START
    reconnects = collector.reconnects
    await collector.until(lambda: collector.reconnects > reconnects)
    assert (await engine.tops(["chat"]))[0].position.epoch


async def publish_from_a_thread(publisher: Publisher, channel: str, text: str) -> Position:
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(EngineUnavailable):
                return await asyncio.to_thread(publisher.publish, channel, text)
            await asyncio.sleep(0.05)


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
