"""The lifespan of an app in tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.types import Receive, Scope, Send

from hubbub import EngineUnavailable, History, Hub
from hubbub.testing import FakeEngine, FakeServer, connect, lifespan


def recording(log: list[str], fail: str = "") -> FastAPI:
    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await asyncio.sleep(0)
        if fail == "start":
            raise ZeroDivisionError("no start")
        log.append("start")
        yield {"pool": "the pool"}
        await asyncio.sleep(0)
        log.append("stop")
        if fail == "stop":
            raise ZeroDivisionError("no stop")

    app = FastAPI(lifespan=own)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.state.pool)
        await websocket.receive()

    return app


async def test_clients_share_one_lifespan_which_ends_with_the_last() -> None:
    log: list[str] = []
    app = recording(log)
    async with connect(app, path="/") as first:
        async with connect(app, path="/"):
            assert log == ["start"]
            assert await first.receive() == "the pool"
        assert log == ["start"]
    assert log == ["start", "stop"]
    async with connect(app, path="/"):
        assert log == ["start", "stop", "start"]
    assert log == ["start", "stop"] * 2


async def test_clients_that_come_and_go_at_the_same_time_never_find_a_stopped_app() -> None:
    log: list[str] = []
    app = recording(log)

    async def client(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        async with connect(app, path="/") as client:
            assert await client.receive() == "the pool"

    async with asyncio.TaskGroup() as group:
        for turns in range(60):
            group.create_task(client(turns))
    assert len(log) % 2 == 0
    assert log == ["start", "stop"] * (len(log) // 2)


async def test_it_may_be_held_by_itself() -> None:
    hub = Hub()
    hub.channel("room", history=History(size=10))
    app = FastAPI()
    app.include_router(hub.router)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with hub.connection(websocket) as client:
            await client.subscribe("room", history=10)
            async for text in client.iter_text():
                await hub.publish("room", text)

    async with lifespan(app) as state:
        assert state == {}
        async with connect(app, path="/") as client:
            await client.send("hi")
            assert await client.receive() == "hi"
        async with connect(app, path="/") as client:
            assert await client.receive() == "hi"


async def test_an_app_that_does_not_start_raises_its_exception() -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="no start"):
            async with connect(recording([], "start"), path="/"):
                raise AssertionError
    hub = Hub()
    server = FakeServer()
    hub.engine = FakeEngine(server)
    server.disconnect()
    app = FastAPI()
    app.include_router(hub.router)
    with pytest.raises(EngineUnavailable):
        async with lifespan(app):
            raise AssertionError
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_app_that_does_not_stop_raises_its_exception() -> None:
    with pytest.raises(ZeroDivisionError, match="no stop"):
        async with connect(recording([], "stop"), path="/"):
            pass


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("lifespan.startup.failed", "did not start: reason"),
        ("lifespan.shutdown.failed", "did not stop: reason"),
    ],
)
async def test_an_app_may_report_a_failure_without_an_exception(answer: str, text: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if answer == "lifespan.startup.failed":
            await send({"type": answer, "message": "reason"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": answer, "message": "reason"})

    with pytest.raises(RuntimeError, match=text):
        async with lifespan(app):
            pass


@pytest.mark.parametrize("phase", ["start", "stop"])
async def test_an_app_that_hangs_is_cancelled(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubbub.testing.app_lifespan.LIFESPAN_TIMEOUT", 0.5)

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        if phase == "start":
            await asyncio.Event().wait()
        yield
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match=rf"did not {phase} within 0\.5 s"):
        async with lifespan(FastAPI(lifespan=own)):
            pass
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_test_that_is_cancelled_while_the_app_starts_leaves_nothing() -> None:
    begun = asyncio.Event()

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        begun.set()
        await asyncio.Event().wait()
        yield

    async def test() -> None:
        async with lifespan(FastAPI(lifespan=own)):
            raise AssertionError

    task = asyncio.create_task(test())
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_each_connection_has_a_state_of_its_own() -> None:
    app = recording([])
    seen: list[Any] = []

    @app.websocket("/own")
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        seen.append(getattr(websocket.state, "mark", None))
        websocket.state.mark = "set"

    for _ in range(2):
        async with lifespan(app), connect(app, path="/own"):
            pass
    assert seen == [None, None]


def test_each_event_loop_has_a_lifespan_of_its_own() -> None:
    log: list[str] = []
    app = recording(log)

    async def test() -> None:
        async with connect(app, path="/") as client:
            assert await client.receive() == "the pool"

    run: Callable[[], None] = lambda: asyncio.run(test())  # noqa: E731
    run()
    run()
    assert log == ["start", "stop"] * 2
