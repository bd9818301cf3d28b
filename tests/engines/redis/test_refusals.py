"""Servers that are not there, not what they should be, or refuse."""

from __future__ import annotations

import asyncio

import pytest

from hubbub.engines.redis import RedisEngine
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.clients import DEADLINE
from tests.engines.redis.nodes import accepted, close_for, running
from tests.engines.redis.ports import serving
from tests.engines.redis.server import RedisServer, redis_server
from tests.uvicorn_process import free_port


async def test_nobody_there() -> None:
    port = free_port()
    engine = RedisEngine(f"redis://user:s3cret@127.0.0.1:{port}/0")
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}") as info:
            await engine.start(Collector())
    assert "s3cret" not in str(info.value)
    await engine.stop()


@pytest.mark.usefixtures("impatient")
async def test_somebody_who_says_nothing() -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(connected) as port:
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}.*no answer"):
            await RedisEngine(f"redis://127.0.0.1:{port}").start(Collector())


async def test_somebody_who_is_no_redis() -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with serving(connected) as port:
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}"):
            await RedisEngine(f"redis://127.0.0.1:{port}").start(Collector())


async def test_a_wrong_password() -> None:
    with redis_server("requirepass", "s3cret") as server:
        host = f"127.0.0.1:{server.port}"
        async with running(f"redis://:s3cret@{host}") as (engine, _):
            await engine.publish(publication("chat", "hello"))
        async with running(f"redis://default:s3cret@{host}/1") as (engine, _):
            await engine.publish(publication("chat", "hello"))
        for url, said in (
            (f"redis://:wr0ng@{host}", "WRONGPASS|invalid"),
            (f"redis://{host}", "uthentication"),
        ):
            with pytest.raises(EngineUnavailable, match=said) as info:
                await RedisEngine(url).start(Collector())
            assert "wr0ng" not in str(info.value)


async def test_a_database_that_does_not_exist(server: RedisServer) -> None:
    with pytest.raises(EngineUnavailable, match=r"out of range|Invalid Database"):
        await RedisEngine(f"{server.url}/999").start(Collector())


async def test_a_server_without_memory(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("plain")
        with server.client() as client:
            client.config_set("maxmemory", "1mb")
            assert "maxmemory" in await close_for(engine, history=HISTORY)
            assert client.keys() == []
            # What is not kept needs none.
            await engine.publish(publication("plain", "hello"))
            await collector.heard("plain", ["hello"])
            client.config_set("maxmemory", "0")
        assert (await engine.publish(publication("chat", "1"), HISTORY)).offset == 1


async def test_a_replica(server: RedisServer) -> None:
    with redis_server("replicaof", f"127.0.0.1 {server.port}") as replica:
        engine = RedisEngine(replica.url)
        with pytest.raises(EngineUnavailable, match="primary"):
            await engine.start(Collector())


async def test_a_primary_that_becomes_a_replica(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        with server.client() as client:
            client.replicaof("127.0.0.1", free_port())
            message = await close_for(engine, history=HISTORY)
            assert "read only" in message
            await collector.until(lambda: collector.disconnects == 1)
            client.execute_command("REPLICAOF", "NO", "ONE")
        await collector.until(lambda: collector.reconnects >= 1)
        await accepted(engine, "back", HISTORY)


@pytest.mark.usefixtures("impatient")
async def test_a_primary_that_becomes_a_replica_while_nothing_is_kept(server: RedisServer) -> None:
    """A replica would take it, and tell nobody but those who listen to it."""
    async with running(server.url) as (engine, collector):
        with server.client() as client:
            client.replicaof("127.0.0.1", free_port())
            await collector.until(lambda: collector.disconnects == 1)
            assert "primary" in await close_for(engine)


async def test_a_server_that_does_not_let_us(server: RedisServer) -> None:
    with server.client() as client:
        # Until Redis 7 a new user may use all channels.
        for rules in (
            "ann on >pw ~hubbub:* resetchannels &hubbub:* +@all -@dangerous",
            "bob on >pw ~other:* resetchannels &* +@all",
        ):
            client.execute_command("ACL", "SETUSER", *rules.split())
    async with running(f"redis://ann:pw@127.0.0.1:{server.port}") as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        await engine.publish(publication("chat", "hello"), HISTORY)
        await collector.heard("chat", ["hello"])
    async with running(f"redis://bob:pw@127.0.0.1:{server.port}") as (engine, _):
        assert "permission" in await close_for(engine, history=HISTORY)
