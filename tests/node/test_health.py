"""Health: outages, and engines that answer and accept nothing because their disk or memory is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from hubbub import History
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.publication import Publication
from hubbub.engines import Engine, engine_for
from hubbub.exceptions import EngineUnavailable
from hubbub.node.control import Disconnect
from hubbub.node.health import HEALTH
from hubbub.node.node import Node
from hubbub.node.presence import encode_entry
from hubbub.testing.engine_contract import DEADLINE, publication
from hubbub.testing.fake_engine import FakeEngine, FakeServer
from hubbub.types import Health, PresenceEntry
from tests.clock import FakeClock
from tests.engines.redis.server import RedisServer, redis_server
from tests.engines.sqlite.disk import Disk
from tests.subscriber import Subscriber

#: A payload, a user and a password that no error may contain.
SECRET = "s3cret"

Work = Callable[[Node], Awaitable[object]]


@asynccontextmanager
async def running(engine: Engine, clock: FakeClock | None = None) -> AsyncIterator[Node]:
    declaration = ChannelDeclaration("chat", history=History(size=1000), presence=True)
    node = Node(engine, lambda name: declaration, clock=clock)
    await node.start()
    try:
        yield node
    finally:
        await node.stop(1012, "restart", 1)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server("requirepass", SECRET, "maxmemory-policy", "noeviction") as server:
        yield server


@contextmanager
def full(server: RedisServer) -> Iterator[None]:
    """Let the server read, and refuse all writes."""
    with server.client(SECRET) as client:
        client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            client.config_set("maxmemory", 0)


async def publish(node: Node) -> None:
    await node.publish(publication("chat", SECRET * 10_000))


async def fill(node: Node) -> None:
    for _ in range(100):
        await publish(node)


async def disconnect(node: Node) -> None:
    await node.command(Disconnect(4000, "bye", SECRET))


async def join(node: Node, name: str = "a") -> None:
    await node.join("chat", Subscriber(name), entry=encode_entry(PresenceEntry(name, SECRET)))


async def until_ok(node: Node) -> None:
    async with asyncio.timeout(DEADLINE):
        while not (await node.health(DEADLINE)).ok:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# Outages


async def test_an_outage_is_in_health_and_stats() -> None:
    server, clock = FakeServer(), FakeClock()
    async with running(FakeEngine(server), clock) as node:
        health = await node.health(1)
        assert health == Health(ok=True, latency=0, engine_outage_seconds=0, error="")
        assert (node.stats()["engine_outages"], node.stats()["engine_outage_seconds"]) == (0, 0)
        server.disconnect()
        clock.advance(7)
        health = await node.health(1)
        assert not health.ok
        assert health.engine_outage_seconds == 7
        assert "Lost the fake server" in health.error
        assert (node.stats()["engine_outages"], node.stats()["engine_outage_seconds"]) == (1, 7)
        server.reconnect()
        assert (await node.health(1)).ok
        assert (node.stats()["engine_outages"], node.stats()["engine_outage_seconds"]) == (1, 0)


async def test_the_seconds_of_all_outages_add_up() -> None:
    server, clock = FakeServer(), FakeClock()
    async with running(FakeEngine(server), clock) as node:

        def seconds() -> tuple[float, float]:
            stats = node.stats()
            return stats["engine_outage_seconds"], stats["all_outage_seconds"]

        # Engines may report that they may have missed publications, without an outage.
        server.reconnect()
        assert seconds() == (0, 0)
        server.disconnect()
        clock.advance(7)
        assert seconds() == (7, 7)
        server.reconnect()
        clock.advance(100)
        assert seconds() == (0, 7)
        server.disconnect()
        clock.advance(2)
        assert seconds() == (2, 9)


async def test_an_engine_that_does_not_answer_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(FakeServer())

    async def never(*args: object, **options: object) -> None:
        await asyncio.Event().wait()

    async with running(engine) as node:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "history", never)
            health = await node.health(0.05)
        assert not health.ok
        assert health.error == "The engine did not answer within 0.05 s."


# Engines that accept nothing


@pytest.mark.parametrize("write", [publish, disconnect, join])
async def test_redis_without_memory(server: RedisServer, write: Work) -> None:
    engine = engine_for(f"redis://:{SECRET}@127.0.0.1:{server.port}")
    async with running(engine) as node:
        await write(node)
        assert (await node.health(DEADLINE)).ok
        with full(server):
            if write is join:
                # Joining does not wait for an engine that refuses the presence entry.
                await join(node, "b")
            else:
                with pytest.raises(EngineUnavailable):
                    await write(node)
            for _ in range(2):
                health = await node.health(DEADLINE)
                assert not health.ok
                assert health.engine_outage_seconds == 0
                assert "maxmemory" in health.error
                assert SECRET not in health.error
        # The application publishes nothing: the health check writes itself.
        await until_ok(node)
        await write(node)


async def test_sqlite_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    async with running(engine_for(f"sqlite:///{tmp_path / 'hub.db'}")) as node:
        disk.pages = 100
        with pytest.raises(EngineUnavailable):
            await fill(node)
        for _ in range(2):
            health = await node.health(DEADLINE)
            assert not health.ok
            assert "full" in health.error
            assert SECRET not in health.error
        # There is room for a smaller publication.
        await node.publish(publication("chat", "hello"))
        assert (await node.health(DEADLINE)).ok
        with pytest.raises(EngineUnavailable):
            await publish(node)
        disk.pages = None
        assert (await node.health(DEADLINE)).ok


async def test_a_health_check_writes_nothing_unless_a_write_has_failed(tmp_path: Path) -> None:
    engine = engine_for(f"sqlite:///{tmp_path / 'hub.db'}")
    written: list[Publication] = []
    accept = engine.publish

    async def recorded(publication: Publication, *arguments: object) -> object:
        written.append(publication)
        return await accept(publication, *arguments)  # type: ignore[arg-type]

    async with running(engine) as node:
        engine.publish = recorded  # type: ignore[assignment, method-assign]
        assert (await node.health(DEADLINE)).ok
        assert written == []


async def test_a_health_check_writes_65536_bytes_at_most(server: RedisServer) -> None:
    engine = engine_for(f"redis://:{SECRET}@127.0.0.1:{server.port}")
    async with running(engine) as node:
        with full(server), pytest.raises(EngineUnavailable):
            await node.publish(publication("chat", "x" * 1_000_000))
        assert (await node.health(DEADLINE)).ok
        (written,) = (await engine.history(HEALTH)).publications
        assert len(written.data) == 65_536
