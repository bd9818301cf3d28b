"""The clock that stands still."""

from __future__ import annotations

import asyncio
import time

import pytest
from fastapi import FastAPI, WebSocket

from hubbub import History, Hub
from hubbub.testing import connect, freeze, lifespan
from tests.clients import DEADLINE


async def test_a_history_expires_by_the_frozen_clock() -> None:
    hub = Hub()
    hub.channel("room", history=History(ttl=60))
    with freeze(hub) as clock:
        async with hub:
            await hub.publish("room", "hi")
            await clock.advance(59.5)
            assert [each.data for each in await hub.history("room")] == [b"hi"]
            await clock.advance(0.6)
            assert await hub.history("room") == []


async def test_a_lease_is_renewed_while_its_node_lives() -> None:
    hub = Hub(presence_ttl=10)
    hub.channel("room", presence=True)
    app = FastAPI()
    app.include_router(hub.router)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with hub.connection(websocket, user="ann") as client:
            await client.subscribe("room", join_leave="users")
            async for _ in client.iter_text():
                pass

    with freeze(hub) as clock:
        async with connect(app, path="/") as client:
            assert [entry["user"] for entry in (await client.receive())["entries"]] == ["ann"]
            # In one step, the lease would have lapsed.
            await clock.advance(35)
            assert list((await hub.presence("room")).users) == ["ann"]
            await client.receive_nothing(seconds=0.01)


async def test_its_time_is_that_of_tokens() -> None:
    hub = Hub()
    before = time.time()
    with freeze(hub) as clock:
        assert before <= clock.time() <= time.time()
        begin = clock.time()
        await asyncio.sleep(0.01)
        assert clock.time() == begin
        await clock.advance(3600)
        assert clock.time() == pytest.approx(begin + 3600)
        for seconds in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="Expected seconds"):
                await clock.advance(seconds)
        assert clock.time() == pytest.approx(begin + 3600)


async def test_the_hub_gets_its_own_engine_back() -> None:
    hub = Hub()
    engine = hub.engine
    with freeze(hub):
        assert hub.engine is not engine
        async with hub:
            pass
    assert hub.engine is engine
    async with hub:
        await hub.publish("room", "hi")


async def test_a_hub_that_runs_is_refused() -> None:
    hub = Hub()
    app = FastAPI()
    app.include_router(hub.router)
    async with lifespan(app):
        with pytest.raises(RuntimeError, match="Expected a hub that is not running"), freeze(hub):
            raise AssertionError
    engine = hub.engine
    with pytest.raises(RuntimeError, match="Expected a hub that is not running"), freeze(hub):
        await hub.__aenter__()
    await hub.__aexit__(None, None, None)
    assert hub.engine is engine


def test_an_engine_with_another_clock_is_refused() -> None:
    hub = Hub("sqlite:///never.db")
    with pytest.raises(ValueError, match=r"memory://, but got one with SQLiteEngine"), freeze(hub):
        raise AssertionError


async def test_waits_for_clients_remain_in_real_seconds() -> None:
    hub = Hub()
    app = FastAPI()
    app.include_router(hub.router)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with hub.connection(websocket) as client:
            await client.send("hello")

    with freeze(hub):
        async with asyncio.timeout(DEADLINE), connect(app, path="/") as client:
            assert await client.receive() == "hello"
            with pytest.raises(Exception, match="closed with 1000"):
                await client.receive()


async def test_a_client_is_not_slow_because_the_clock_is_ahead() -> None:
    hub = Hub()
    app = FastAPI()
    app.include_router(hub.router)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with hub.connection(websocket) as client:
            for _ in range(3):
                await client.send(bytes(50_000))
            async for _ in client.iter_text():
                pass

    with freeze(hub) as clock:
        async with connect(app, path="/") as client:
            # The third message is on its way, and waits for the client to read.
            await clock.advance(120)
            for _ in range(3):
                assert len(await client.receive(bytes)) == 50_000
            await client.receive_nothing(seconds=0.01)
