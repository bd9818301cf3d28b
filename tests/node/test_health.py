"""What ``hub.health()`` says while an engine answers and accepts nothing: a full disk, a full memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from hubbub import History
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.publication import Publication
from hubbub.engines import Engine, engine_for
from hubbub.engines.sqlite import SQLiteEngine
from hubbub.engines.sqlite.store import Store
from hubbub.exceptions import EngineUnavailable
from hubbub.node.control import Disconnect
from hubbub.node.node import Node
from hubbub.node.presence import encode_entry
from hubbub.testing.engine_contract import DEADLINE, publication
from hubbub.types import PresenceEntry
from tests.engines.redis.server import RedisServer, redis_server

#: No error may show it.
SECRET = "s3cret"

Work = Callable[[Node], Awaitable[object]]


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Node]:
    node = Node(engine, lambda name: ChannelDeclaration(name, history=History(size=1000), presence=True))
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
    """It reads, and writes nothing."""
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


async def enter(node: Node) -> None:
    await node.enter("chat", "a", encode_entry(PresenceEntry("a", SECRET)))


async def until_well(node: Node) -> None:
    async with asyncio.timeout(DEADLINE):
        while not (await node.health(DEADLINE)).ok:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("write", [publish, disconnect, enter])
async def test_redis_without_memory(server: RedisServer, write: Work) -> None:
    engine = engine_for(f"redis://:{SECRET}@127.0.0.1:{server.port}")
    async with running(engine) as node:
        await write(node)
        assert (await node.health(DEADLINE)).ok
        with full(server):
            if write is enter:
                # Entering does not wait for an engine that is in trouble.
                await node.enter("chat", "b", encode_entry(PresenceEntry("b", SECRET)))
            else:
                with pytest.raises(EngineUnavailable):
                    await write(node)
            for _ in range(2):
                health = await node.health(DEADLINE)
                assert not health.ok
                assert health.engine_outage_seconds == 0
                assert "maxmemory" in health.error
                assert SECRET not in health.error
        # Nothing is published: the health check itself finds out.
        await until_well(node)
        await write(node)


async def test_sqlite_on_a_full_disk(tmp_path: Path) -> None:
    engine = engine_for(f"sqlite:///{tmp_path / 'hub.db'}")
    assert isinstance(engine, SQLiteEngine)

    def limit(pages: int, store: Store, now: float) -> None:
        store._execute(f"PRAGMA max_page_count = {pages}")

    async with running(engine) as node:
        await engine._do(partial(limit, 100), writes=False)
        with pytest.raises(EngineUnavailable):
            await fill(node)
        for _ in range(2):
            health = await node.health(DEADLINE)
            assert not health.ok
            assert "full" in health.error
            assert SECRET not in health.error
        # A smaller one fits.
        await node.publish(publication("chat", "hello"))
        assert (await node.health(DEADLINE)).ok
        with pytest.raises(EngineUnavailable):
            await publish(node)
        await engine._do(partial(limit, 1_000_000), writes=False)
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


async def test_a_failed_write_of_any_size_is_tried_again_with_little(server: RedisServer) -> None:
    engine = engine_for(f"redis://:{SECRET}@127.0.0.1:{server.port}")
    async with running(engine) as node:
        with full(server), pytest.raises(EngineUnavailable):
            await node.publish(publication("chat", "x" * 1_000_000))
        assert (await node.health(DEADLINE)).ok
        (written,) = (await engine.history("\x01health")).publications
        assert len(written.data) == 65_536
