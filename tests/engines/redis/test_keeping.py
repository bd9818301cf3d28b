"""What the server keeps, and for how long."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from secrets import token_hex
from typing import Any

import pytest
from redis import Redis

from hubbub.core.publication import Position
from hubbub.engines.contract import HISTORY, publication
from hubbub.engines.redis.url import parse_url
from hubbub.types import MAX_SIZE, MAX_TTL, History
from tests.engines.redis.nodes import running


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


async def test_what_is_too_old_is_dropped_from_the_server(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        brief = History(size=100, ttl=0.2)
        await asyncio.gather(*(engine.publish(publication("chat", str(n)), brief) for n in range(10)))
        await asyncio.sleep(0.15)
        await engine.publish(publication("chat", "keeps the log from expiring"), brief)
        await asyncio.sleep(0.1)
        with Redis.from_url(redis_url) as client:
            log = f"{namespace}:{{chat}}:log"
            for left in (10, 9, 8):
                await engine.publish(publication("chat", "new"), brief)
                assert client.xlen(log) == left
        offsets = [each.offset for each in (await engine.history("chat")).publications]
        assert offsets == [11, 12, 13, 14]


async def test_a_stream_that_is_looked_at_lives_on(redis_url: str, namespace: str) -> None:
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
async def test_positions_that_never_were_are_harmless(redis_url: str, namespace: str, offset: int) -> None:
    async with running(redis_url, namespace) as (engine, _):
        top = await engine.publish(publication("chat", "1"), HISTORY)
        for reverse in (False, True):
            page = await engine.history("chat", Position(offset, top.epoch), reverse=reverse)
            assert page.position == top
            assert len(page.publications) == ((offset > 0) == reverse)


async def test_limits_beyond_what_redis_counts_are_taken(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        await engine.publish(publication("chat", "1"), History(size=MAX_SIZE, ttl=MAX_TTL))
        await engine.publish(publication("chat", "2"), History(size=10, ttl=1e-9))


async def test_namespaces_and_databases_are_kept_apart(redis_url: str) -> None:
    host = "{host}:{port}".format(**parse_url(redis_url).options)
    token = token_hex(4)
    urls = [(f"redis://{host}/0", token), (f"redis://{host}/1", token), (f"redis://{host}/0", token + ":{a}")]
    async with AsyncExitStack() as stack:
        all_of_them = [await stack.enter_async_context(running(*each)) for each in urls]
        for engine, _ in all_of_them:
            await engine.subscribe("chat", HISTORY)
        for number, (engine, _) in enumerate(all_of_them):
            assert (await engine.publish(publication("chat", str(number)), HISTORY)).offset == 1
        for number, (_, collector) in enumerate(all_of_them):
            await collector.heard("chat", [str(number)])
