"""Histories on the server: expiry, limits, evicted keys, and reads of many channels."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from secrets import token_hex
from typing import Any

import pytest
from redis import Redis, RedisCluster

from hubbub.core.history import MAX_SIZE, MAX_TTL, History
from hubbub.core.publication import Position
from hubbub.engines.redis.address import parse_url
from hubbub.testing.engine_contract import HISTORY, publication
from tests.engines.redis.nodes import running
from tests.engines.redis.server import RedisServer


async def test_everything_expires(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        await engine.publish(publication("chat", "1"), History(size=10, ttl=60), "key")
        await engine.publish(publication("plain", "1"))
        with Redis.from_url(redis_url) as client:
            ttls: dict[str, Any] = {
                key.decode().removeprefix(f"{namespace}:"): client.pttl(key)
                for key in client.scan_iter(f"{namespace}:*")
            }
    assert ttls.keys() == {"{chat}:meta", "{chat}:log", "{chat}:key:key"}
    assert 50_000 < ttls["{chat}:log"] <= 60_000
    assert ttls["{chat}:meta"] > ttls["{chat}:log"] + 3_000_000
    assert 250_000 < ttls["{chat}:key:key"] <= 300_000


def age(client: Redis, log: str, count: int) -> None:
    """Set the time of the oldest ``count`` publications to long ago."""
    entries: Any = client.xrange(log)
    with client.pipeline() as pipeline:
        pipeline.delete(log)
        for number, (entry, fields) in enumerate(entries):
            pipeline.xadd(log, fields | {b"t": b"1.000000"} if number < count else fields, id=entry)
        pipeline.execute()


@pytest.mark.parametrize(("kept", "too_old"), [(10, 0), (10, 1), (10, 9), (10, 10), (300, 299), (300, 187)])
async def test_expired_publications_are_dropped_from_the_server(
    redis_url: str, namespace: str, kept: int, too_old: int
) -> None:
    log = f"{namespace}:{{chat}}:log"
    async with running(redis_url, namespace) as (engine, _):
        history = History(size=1000, ttl=60)
        with Redis.from_url(redis_url) as client:
            for publish in (True, False):
                await engine.remove_history("chat")
                for number in range(kept):
                    await engine.publish(publication("chat", str(number)), history)
                age(client, log, too_old)
                if publish:
                    await engine.publish(publication("chat", "new"), history)
                    assert client.xlen(log) == kept - too_old + 1
                page = await engine.history("chat")
                assert client.xlen(log) == kept - too_old + publish
                offsets = [each.offset for each in page.publications]
                assert offsets == list(range(too_old + 1, kept + publish + 1))


async def test_publishing_drops_a_bounded_number_of_expired_publications(
    redis_url: str, namespace: str
) -> None:
    log = f"{namespace}:{{chat}}:log"
    async with running(redis_url, namespace) as (engine, _):
        history = History(size=5000, ttl=60)
        await asyncio.gather(*(engine.publish(publication("chat", str(n)), history) for n in range(2500)))
        with Redis.from_url(redis_url) as client:
            age(client, log, 2400)
            for left in (1501, 502, 103, 104):
                await engine.publish(publication("chat", "new"), history)
                assert client.xlen(log) == left
            age(client, log, 104)
            assert (await engine.history("chat")).publications == []
            assert client.xlen(log) == 0


async def test_reading_one_publication_copies_one_into_lua(server: RedisServer) -> None:
    """And one more, the oldest, to see whether it has expired."""
    size = 1_000_000
    async with running(server.url) as (engine, _):
        for number in range(50):
            await engine.publish(publication("chat", str(number % 10) * size), HISTORY)
        with server.client() as client:
            # A new interpreter, without the garbage of the old one.
            client.script_flush()
            page = await engine.history("chat", limit=1, reverse=True)
            info: Any = client.info("memory")
        assert [len(each.data) for each in page.publications] == [size]
        assert info["used_memory_lua"] < 10 * size


async def test_reading_a_stream_refreshes_its_key(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        await engine.subscribe("chat", HISTORY)
        meta = f"{namespace}:{{chat}}:meta"
        with Redis.from_url(redis_url) as client:
            client.pexpire(meta, 10_000)
            await engine.history("chat", limit=0)
            ttl: Any = client.pttl(meta)
    assert ttl > 3_000_000


@pytest.mark.parametrize("lost", ["meta", "log"])
async def test_a_key_that_was_evicted_breaks_nothing(redis_url: str, namespace: str, lost: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        before = [await engine.publish(publication("chat", str(n)), HISTORY) for n in range(3)][-1]
        with Redis.from_url(redis_url) as client:
            assert client.delete(f"{namespace}:{{chat}}:{lost}") == 1
        after = await engine.publish(publication("chat", "after"), HISTORY)
        if lost == "meta":
            assert after.offset == 1
            assert after.epoch != before.epoch
        else:
            assert after == (before.offset + 1, before.epoch)
        assert [each.offset for each in (await engine.history("chat")).publications] == [after.offset]


@pytest.mark.parametrize("offset", [-5, 2**40, 2**70])
async def test_positions_that_never_existed_are_harmless(redis_url: str, namespace: str, offset: int) -> None:
    async with running(redis_url, namespace) as (engine, _):
        top = await engine.publish(publication("chat", "1"), HISTORY)
        for reverse in (False, True):
            page = await engine.history("chat", Position(offset, top.epoch), reverse=reverse)
            assert page.position == top
            assert len(page.publications) == ((offset > 0) == reverse)


async def test_a_key_that_cannot_be_encoded_is_an_error_of_its_caller_alone(
    redis_url: str, namespace: str
) -> None:
    async with running(redis_url, namespace) as (engine, collector):
        bad, *good = await asyncio.gather(
            engine.publish(publication("chat", "bad"), HISTORY, "\ud800"),
            *(engine.publish(publication("chat", str(n)), HISTORY) for n in range(3)),
            return_exceptions=True,
        )
        assert isinstance(bad, UnicodeEncodeError)
        assert [each[0] for each in good if isinstance(each, Position)] == [1, 2, 3]
        page = await engine.history("chat", Position(1, "\ud800"))
        assert (page.publications, page.position.offset) == ([], 3)
        assert collector.disconnects == 0


async def test_the_largest_and_smallest_limits_are_accepted(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        await engine.publish(publication("chat", "1"), History(size=MAX_SIZE, ttl=MAX_TTL))
        await engine.publish(publication("chat", "2"), History(size=10, ttl=1e-9))


async def test_namespaces_and_databases_are_kept_apart(redis_url: str) -> None:
    host = "{host}:{port}".format(**parse_url(redis_url).options)
    token = token_hex(4)
    urls = [(f"redis://{host}/0", token), (f"redis://{host}/1", token), (f"redis://{host}/0", token + ":{a}")]
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(running(*each)) for each in urls]
        for engine, _ in engines:
            await engine.subscribe("chat", HISTORY)
        for number, (engine, _) in enumerate(engines):
            assert (await engine.publish(publication("chat", str(number)), HISTORY)).offset == 1
        for number, (_, collector) in enumerate(engines):
            await collector.heard("chat", [str(number)])


@pytest.mark.parametrize("is_cluster", [False, True])
async def test_tops_refresh_the_keys_of_streams_and_change_nothing_else(
    request: pytest.FixtureRequest, namespace: str, is_cluster: bool
) -> None:
    url: str = request.getfixturevalue("redis_cluster_url" if is_cluster else "redis_url")
    names = ["plain", *(f"room:{number}" for number in range(10))]
    metas = [f"{namespace}:{{{name}}}:meta" for name in names]
    async with running(url, namespace) as (engine, _):
        for name in names[1:]:
            await engine.publish(publication(name, name), HISTORY)
        client: Any = (
            RedisCluster.from_url(url.replace("+cluster", "")) if is_cluster else Redis.from_url(url)
        )
        with ExitStack() as stack:
            stack.enter_context(client)
            if is_cluster:
                # close() only returns its connections to the pool.
                stack.callback(client.disconnect_connection_pools)
            for meta in metas:
                client.pexpire(meta, 10_000)
            before = [client.hgetall(meta) for meta in metas]
            tops = await engine.tops(names)
            assert [client.hgetall(meta) for meta in metas] == before
            assert [top.position.offset for top in tops] == [0] + [1] * 10
            assert client.exists(metas[0]) == 0
            assert all(client.pttl(meta) > 3_000_000 for meta in metas[1:])


async def test_the_tops_of_many_channels_are_read_by_one_script(server: RedisServer) -> None:
    async with running(server.url) as (engine, _):
        names = [f"room:{number}" for number in range(1200)]
        await asyncio.gather(*(engine.publish(publication(name, name), HISTORY) for name in names))
        with server.client() as client:
            client.config_resetstat()
            assert {top.position.offset for top in await engine.tops(names)} == {1}
            stats: Any = client.info("commandstats")
        assert stats["cmdstat_evalsha"]["calls"] == 3
        assert not {"cmdstat_xrange", "cmdstat_xrevrange"} & stats.keys()
