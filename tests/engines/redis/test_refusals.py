"""Servers that do not answer, are not primaries, or refuse a command."""

from __future__ import annotations

import asyncio

import pytest

from hubbub.engines.redis import RedisEngine
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.clients import DEADLINE
from tests.engines.redis.nodes import accepted, rejection, running
from tests.engines.redis.ports import serving
from tests.engines.redis.server import RedisServer, redis_server
from tests.uvicorn_process import free_port


async def test_a_port_without_a_server_is_refused_without_the_password() -> None:
    port = free_port()
    engine = RedisEngine(f"redis://user:s3cret@127.0.0.1:{port}/0")
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}") as info:
            await engine.start(Collector())
    assert "s3cret" not in str(info.value)
    await engine.stop()


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_does_not_answer_is_refused() -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(connected) as port:
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}.*no answer"):
            await RedisEngine(f"redis://127.0.0.1:{port}").start(Collector())


async def test_a_server_of_another_protocol_is_refused() -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with serving(connected) as port:
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}"):
            await RedisEngine(f"redis://127.0.0.1:{port}").start(Collector())


async def test_a_wrong_password_is_refused() -> None:
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


async def test_a_database_that_does_not_exist_is_refused(server: RedisServer) -> None:
    with pytest.raises(EngineUnavailable, match=r"out of range|Invalid Database"):
        await RedisEngine(f"{server.url}/999").start(Collector())


async def test_a_server_without_memory_refuses_only_what_it_would_keep(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("plain")
        with server.client() as client:
            client.config_set("maxmemory", "1mb")
            assert "maxmemory" in await rejection(engine, history=HISTORY)
            assert client.keys() == []
            # A publication that is not kept needs no memory.
            await engine.publish(publication("plain", "hello"))
            await collector.heard("plain", ["hello"])
            client.config_set("maxmemory", "0")
        assert (await engine.publish(publication("chat", "1"), HISTORY)).offset == 1


async def test_a_replica_is_refused(server: RedisServer) -> None:
    with redis_server("replicaof", f"127.0.0.1 {server.port}") as replica:
        engine = RedisEngine(replica.url)
        with pytest.raises(EngineUnavailable, match="primary"):
            await engine.start(Collector())


async def test_a_primary_that_becomes_a_replica_is_noticed(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        with server.client() as client:
            client.replicaof("127.0.0.1", free_port())
            message = await rejection(engine, history=HISTORY)
            assert "read only" in message
            await collector.until(lambda: collector.disconnects == 1)
            client.execute_command("REPLICAOF", "NO", "ONE")
        await collector.until(lambda: collector.reconnects >= 1)
        await accepted(engine, "back", HISTORY)


@pytest.mark.usefixtures("impatient")
async def test_a_primary_that_becomes_a_replica_is_noticed_without_a_write(server: RedisServer) -> None:
    """A replica accepts PUBLISH, but delivers the message only to its own subscribers."""
    async with running(server.url) as (engine, collector):
        with server.client() as client:
            client.replicaof("127.0.0.1", free_port())
            await collector.until(lambda: collector.disconnects == 1)
            assert "primary" in await rejection(engine)


async def test_a_user_without_the_rights_is_refused(server: RedisServer) -> None:
    with server.client() as client:
        # Before Redis 7, a new user may use all channels.
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
        assert "permission" in await rejection(engine, history=HISTORY)
