"""One connection to Redis, which may break at any moment: every request that waits for it fails then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from hubbub.engines import engine_for
from hubbub.engines.redis.address import parse_url
from hubbub.engines.redis.connection import RedisConnection, Request
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import Collector, publication
from tests.clients import DEADLINE, eventually
from tests.proxy import Proxy


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(parse_url(redis_url).options["port"]) as proxy:
        yield proxy


def make_connection(port: int) -> RedisConnection:
    address = parse_url(f"redis://127.0.0.1:{port}")
    driver = address.driver(**address.options)
    return RedisConnection(driver, address.where, lambda *_: None, lambda _: None, lambda _: None)


async def test_a_request_on_a_closed_connection_fails_at_once(proxy: Proxy) -> None:
    connection = make_connection(proxy.port)
    await connection.connect()
    connection.close("over")
    # Without a deadline, as the requests that subscribe after a reconnection.
    request = Request(["PING"])
    connection.send(request)
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(EngineUnavailable, match="is closed"):
            await request.answer
        await connection.wait_closed()


async def test_a_connection_that_is_closed_while_it_connects_leaves_nothing_behind(proxy: Proxy) -> None:
    connection = make_connection(proxy.port)
    proxy.stall()
    connecting = asyncio.create_task(connection.connect())
    await eventually(lambda: len(proxy.links) == 1)
    connection.close("over")
    proxy.heal()
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(EngineUnavailable, match="closed meanwhile"):
            await connecting
        await connection.wait_closed()


async def test_an_engine_whose_connections_break_while_they_are_opened_reconnects(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, collector = engine_for(f"redis://127.0.0.1:{proxy.port}"), Collector()
    await engine.start(collector)
    await engine.subscribe("chat")
    made: list[RedisConnection] = []
    connect = RedisConnection.connect

    async def break_another(connection: RedisConnection) -> None:
        made.append(connection)
        if len(made) == 2:
            made[0].close("cut")
        await connect(connection)

    monkeypatch.setattr(RedisConnection, "connect", break_another)
    proxy.cut()
    try:
        await collector.until(lambda: collector.reconnects == 1)
        assert len(made) == 4
        await engine.publish(publication("chat", "back"))
        await collector.heard("chat", ["back"])
    finally:
        await engine.stop()
