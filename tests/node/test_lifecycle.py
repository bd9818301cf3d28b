"""The lifecycle of a hub: with the app, before it, in blocks, from several tasks, and cancelled."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.testclient import TestClient

from hubbub import EngineUnavailable, History, Hub, HubNotRunning, InvalidData, Position, Publication
from hubbub.engines import Engine
from hubbub.node import lifecycle as lifecycle_module
from hubbub.node.lifecycle import Lifecycle
from hubbub.node.node import Node
from tests.clients import DEADLINE, connect, receive
from tests.subscriber import Subscriber
from tests.uvicorn_process import serve

Lifespan = Callable[[FastAPI], Any]


def application(hub: Hub, lifespan: Lifespan | None = None) -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    app.include_router(hub.router)

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        async with hub.connection(websocket) as client:
            await client.subscribe("chat")
            await client.send_text("ready")
            async for _ in client.iter_text():
                pass

    @app.post("/publish")
    async def publish() -> Position:
        return await hub.publish("chat", "hello")

    return app


def spy(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record each start and stop of the hub's engine."""
    seen: list[str] = []
    start, stop = hub.engine.start, hub.engine.stop

    async def started(sink: Any) -> None:
        seen.append("start")
        await asyncio.sleep(0)
        await start(sink)

    async def stopped() -> None:
        await asyncio.sleep(0)
        await stop()
        seen.append("stop")

    monkeypatch.setattr(hub.engine, "start", started)
    monkeypatch.setattr(hub.engine, "stop", stopped)
    return seen


class Gate:
    """Delays a method of an engine until it is opened."""

    def __init__(self, engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.is_open = asyncio.Event(), asyncio.Event()
        method = getattr(engine, name)

        async def delayed(*args: Any, **options: Any) -> Any:
            self.reached.set()
            await self.is_open.wait()
            return await method(*args, **options)

        monkeypatch.setattr(engine, name, delayed)


def lifecycle_of(hub: Hub) -> Lifecycle:
    """The lifecycle of a node on the hub's engine, without the rest of the hub."""

    async def start() -> Node:
        node = Node(hub.engine)
        await node.start()
        return node

    return Lifecycle(start, lambda node: node.stop(1012, "restart", DEADLINE))


# In blocks


async def test_a_hub_starts_stops_and_starts_again() -> None:
    hub = Hub()
    for _ in range(3):
        async with hub as entered:
            assert entered is hub
            assert await hub.publish("chat", "hello") == Position(0, "")
    with pytest.raises(HubNotRunning, match="has stopped"):
        await hub.publish("chat", "hello")


async def test_a_hub_that_was_entered_twice_stops_with_the_last_exit() -> None:
    async with Hub() as hub:
        async with hub:
            pass
        await hub.publish("chat", "still running")
    with pytest.raises(HubNotRunning):
        hub.stats()


async def test_a_hub_that_has_not_started_says_how_to_start_it() -> None:
    hub = Hub()
    for use in (lambda: hub.publish("chat", "x"), lambda: asyncio.to_thread(hub.stats)):
        with pytest.raises(HubNotRunning, match=r"app\.include_router\(hub\.router\)"):
            await use()
    assert repr(hub) == "<Hub MemoryEngine not started>"


async def test_a_hub_is_used_on_its_own_event_loop_only() -> None:
    async with Hub() as hub:
        with pytest.raises(HubNotRunning, match="another loop or a thread"):
            await asyncio.to_thread(asyncio.run, hub.publish("chat", "x"))
        with pytest.raises(HubNotRunning, match=r"hub\.publish_sync\(…\)"):
            await asyncio.to_thread(hub.stats)

        async def enter() -> None:
            async with hub:
                pass

        with pytest.raises(HubNotRunning, match="event loop on which the hub runs"):
            await asyncio.to_thread(asyncio.run, enter())
        assert await hub.publish("chat", "still running") == Position(0, "")


async def test_tasks_that_enter_at_the_same_time_share_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    seen = spy(hub, monkeypatch)

    async def use() -> None:
        async with hub:
            await hub.publish("chat", "x")

    await asyncio.gather(*(use() for _ in range(5)))
    assert seen == ["start", "stop"]


async def test_a_task_that_enters_while_the_hub_stops_gets_a_new_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    seen = spy(hub, monkeypatch)
    gate = Gate(hub.engine, "stop", monkeypatch)
    await hub.__aenter__()
    stopping = asyncio.create_task(hub.__aexit__(None, None, None))
    await gate.reached.wait()
    entering = asyncio.create_task(hub.__aenter__())
    await asyncio.sleep(0)
    assert not entering.done()
    gate.is_open.set()
    await entering
    await stopping
    await hub.publish("chat", "x")
    assert seen == ["start", "stop", "start"]
    await hub.__aexit__(None, None, None)


async def test_a_start_that_is_cancelled_leaves_nothing_and_is_repeated_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    seen = spy(hub, monkeypatch)
    gate = Gate(hub.engine, "subscribe", monkeypatch)
    first, second = (asyncio.create_task(hub.__aenter__()) for _ in range(2))
    await gate.reached.wait()
    first.cancel()
    gate.is_open.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert seen == ["start", "stop", "start"]
    await hub.__aexit__(None, None, None)
    assert seen == ["start", "stop", "start", "stop"]
    with pytest.raises(HubNotRunning):
        hub.stats()


async def test_a_task_that_is_cancelled_while_it_waits_for_a_start_does_not_hold_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    seen = spy(hub, monkeypatch)
    gate = Gate(hub.engine, "start", monkeypatch)
    first, second = (asyncio.create_task(hub.__aenter__()) for _ in range(2))
    await gate.reached.wait()
    second.cancel()
    gate.is_open.set()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    await hub.__aexit__(None, None, None)
    assert seen == ["start", "stop"]


async def test_a_stop_that_is_cancelled_stops_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    seen = spy(hub, monkeypatch)
    lifecycle = lifecycle_of(hub)
    await lifecycle.__aenter__()

    class Stubborn:
        """A connection that does not end."""

        id, backlog, dropped = "1", 0, 0
        user: str | None = None

        def __init__(self) -> None:
            self.ended = asyncio.Event()

        def tick(self, now: float) -> None: ...

        def end(self, code: int, reason: str) -> None:
            self.ended.set()

        async def recheck(self) -> None: ...

    stubborn = Stubborn()
    lifecycle.running().add(stubborn)
    stopping = asyncio.create_task(lifecycle.__aexit__(None, None, None))
    await stubborn.ended.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert seen == ["start", "stop"]
    # And starts again.
    async with lifecycle:
        await lifecycle.running().publish(Publication("chat", b"x", "text", id="x"))


async def test_a_start_that_fails_is_tried_again_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub("sqlite:///nowhere/at/all.db")
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match=r"run: hubbub doctor sqlite:///nowhere/at/all\.db"):
            await hub.__aenter__()


async def test_a_join_that_a_stop_interrupts_is_an_error_and_not_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    async with lifecycle_of(hub) as lifecycle:
        gate = Gate(hub.engine, "subscribe", monkeypatch)
        joining = asyncio.create_task(lifecycle.running().join("chat", Subscriber()))
        await gate.reached.wait()
    with pytest.raises(HubNotRunning, match="stopped before it had subscribed to 'chat'"):
        await joining


# With the app


def test_include_router_starts_and_stops_the_hub_with_the_app_and_its_own_lifespan() -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        seen.append("up")
        yield {"state": "kept"}
        seen.append("down")

    with TestClient(application(Hub(), lifespan)) as client:
        assert client.post("/publish").json() == [0, ""]
        assert client.app_state == {"state": "kept"}
    assert seen == ["up", "down"]


def test_the_router_may_be_included_below_another_router() -> None:
    hub = Hub()
    router = APIRouter(prefix="/v1")
    router.include_router(hub.router)
    app = FastAPI()
    app.include_router(router)

    @app.get("/stats")
    async def stats() -> int:
        return hub.stats().connections

    with TestClient(app) as client:
        assert client.get("/stats").json() == 0


def test_a_hub_serves_two_apps_one_after_the_other_and_in_one_another() -> None:
    hub = Hub()
    inner = application(hub)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner.router.lifespan_context(inner):
            yield

    outer = application(hub, lifespan)
    for app in (inner, outer, inner):
        with TestClient(app) as client:
            assert client.post("/publish").status_code == 200


def test_the_lifespan_of_the_app_publishes_and_starts_what_publishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    hub.channel("log", history=History())
    seen = spy(hub, monkeypatch)
    background: list[asyncio.Task[None]] = []
    may_continue = threading.Event()

    async def work() -> None:
        await hub.publish("log", "from the task")
        await asyncio.to_thread(may_continue.wait)
        await hub.publish("log", "later, from the task")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        background.append(asyncio.create_task(work()))
        # At the same time as the task.
        await asyncio.gather(hub.publish("log", "1"), hub.publish("log", "2"))
        assert (await hub.health()).ok
        yield
        await background[0]
        with pytest.raises(HubNotRunning, match=r"after the 'yield'.*put 'async with hub:' around"):
            await hub.publish("log", "too late")

    app = application(hub, lifespan)

    @app.get("/log")
    async def log() -> list[str]:
        may_continue.set()
        await background[0]
        return [each.data.decode() for each in await hub.history("log")]

    # Each time on an event loop of its own.
    for round_ in (1, 2):
        with TestClient(app) as client, client.websocket_connect("/ws") as ann:
            assert ann.receive_text() == "ready"
            kept = client.get("/log").json()
            assert sorted(kept[-4:]) == ["1", "2", "from the task", "later, from the task"]
            client.post("/publish")
            assert ann.receive_text() == "hello"
        assert seen == ["start", "stop"] * round_
        background.clear()
        may_continue.clear()


def test_a_block_around_the_yield_keeps_the_hub_until_the_end() -> None:
    hub = Hub()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with hub:
            yield
            await hub.publish("log", "the app ends")

    with TestClient(application(hub, lifespan)) as client:
        assert client.post("/publish").status_code == 200
    assert repr(hub) == "<Hub MemoryEngine stopped>"


def test_a_lifespan_that_fails_after_it_has_published_leaves_nothing_running(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    seen = spy(hub, monkeypatch)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await hub.publish("log", "the app starts")
        raise LookupError("it does not")
        yield

    with pytest.raises(LookupError), TestClient(application(hub, lifespan)):
        pass
    assert seen == ["start", "stop"]
    assert "The lifespan has failed, or does not run" in caplog.text
    # The router is included: that is not the reason.
    assert "include_router" not in caplog.text


def test_a_hub_whose_lifespan_never_runs_stops_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    seen = spy(hub, monkeypatch)
    client = TestClient(application(hub))
    # TestClient has an event loop for each request here.
    for round_ in (1, 2):
        assert client.post("/publish").status_code == 200
        assert seen == ["start", "stop"] * round_
    assert "with TestClient(app) as client" in caplog.text
    # Sockets are opened after the lifespan, if it runs.
    with pytest.raises(HubNotRunning, match="with TestClient"), client.websocket_connect("/ws"):
        pass


def test_the_hub_of_a_mounted_app_says_that_its_lifespan_does_not_run() -> None:
    outer = FastAPI()
    outer.mount("/inner", application(Hub()))
    with (
        TestClient(outer) as client,
        pytest.raises(HubNotRunning, match="mounted in another one does not run"),
        client.websocket_connect("/inner/ws"),
    ):
        pass


async def test_a_program_that_ends_at_once_stops_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    application(hub)
    seen = spy(hub, monkeypatch)
    await asyncio.to_thread(asyncio.run, hub.publish("chat", "x"))
    assert seen == ["start", "stop"]


APP = """
import asyncio
from contextlib import asynccontextmanager
from fastapi import FastAPI, WebSocket
from hubbub import History, Hub

async def count():
    for number in range(3):
        await hub.publish("log", f"task {{number}}")

@asynccontextmanager
async def lifespan(app):
    await hub.publish("log", "up")
    task = asyncio.create_task(count())
    yield
    await task
    try:
        await hub.publish("log", "down")
    except RuntimeError as exc:
        print(exc, flush=True)

hub = Hub({url!r})
hub.channel("log", history=History())
app = FastAPI(lifespan=lifespan)
app.include_router(hub.router)

@app.websocket("/ws")
async def ws(websocket: WebSocket):
    async with hub.connection(websocket) as client:
        await client.subscribe("log", history=10)
        async for _ in client.iter_text():
            pass
    # After the block, and not at once.
    await asyncio.sleep(0.2)
    await hub.publish("log", "the client has left")
    print("The handler has ended.", flush=True)
"""


@pytest.mark.parametrize("command", ["hubbub run", "uvicorn", "hypercorn", "granian"])
async def test_an_app_publishes_from_its_start_to_the_end_of_its_handlers(
    command: str, log: Path, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP.format(url=f"sqlite:///{tmp_path / 'hub.db'}"))
    async with serve("app:app", log, command=command, cwd=tmp_path, probe="/docs") as server:
        async with connect(f"{server.ws}/ws") as client:
            assert [await receive(client) for _ in range(4)] == ["up", "task 0", "task 1", "task 2"]
            await server.stop()
        assert "put 'async with hub:' around the 'yield'" in server.log
        # hypercorn cancels handlers before it ends the app, and granian may not close their sockets in time.
        if command in ("hubbub run", "uvicorn"):
            assert "The handler has ended." in server.log
            assert "Traceback" not in server.log


def test_a_hub_that_stops_closes_its_connections_and_waits_for_their_handlers() -> None:
    # TestClient keeps the task of a handler that has returned: the hub waits for all of this time.
    hub = Hub(close_timeout=1)
    running = AsyncExitStack()
    published: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running:
            await running.enter_async_context(hub)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        async with hub.connection(websocket) as client:
            await client.send_text("ready")
            async for _ in client.iter_text():
                pass
        # The hub waits for it, although the connection has ended.
        for _ in range(100):
            await asyncio.sleep(0)
        await hub.publish("chat", "left")
        published.append("left")

    @app.post("/stop")
    async def stop() -> None:
        async with asyncio.timeout(DEADLINE):
            await running.aclose()

    with TestClient(app) as client, client.websocket_connect("/ws") as ann:
        assert ann.receive_text() == "ready"
        client.post("/stop")
        assert ann.receive() == {"type": "websocket.close", "code": 1012, "reason": "restart"}
    assert published == ["left"]


# From threads


def test_an_endpoint_in_a_thread_publishes_in_one_process() -> None:
    publish_from_threads(Hub())


def test_an_endpoint_in_a_thread_publishes_across_processes(engine_url: str, namespace: str) -> None:
    publish_from_threads(Hub(engine_url, namespace=namespace))


def publish_from_threads(hub: Hub) -> None:
    hub.channel("log", history=History())
    app = application(hub)

    @app.post("/sync")
    def sync(channel: str, exclude: str | None = None, key: str | None = None) -> Position:
        return hub.publish_sync(channel, "from a thread", exclude=exclude, idempotency_key=key)

    with TestClient(app) as client, client.websocket_connect("/ws") as ann:
        assert ann.receive_text() == "ready"
        assert client.post("/sync", params={"channel": "chat"}).json() == [0, ""]
        assert ann.receive_text() == "from a thread"
        first = client.post("/sync", params={"channel": "log", "key": "1"}).json()
        assert client.post("/sync", params={"channel": "log", "key": "1"}).json() == first
        with pytest.raises(InvalidData):
            hub.publish_sync("chat", object())
        # From threads that are not the app's, at the same time.
        with ThreadPoolExecutor(8) as pool:
            positions = list(pool.map(lambda n: hub.publish_sync("log", n), range(100)))
        assert sorted(each.offset for each in positions) == list(range(2, 102))


async def test_a_thread_with_an_event_loop_must_not_wait() -> None:
    async with Hub() as hub:
        with pytest.raises(RuntimeError, match=r"Use 'await hub\.publish"):
            hub.publish_sync("chat", "x")


async def test_publishing_from_a_thread_needs_a_running_hub() -> None:
    hub = Hub()
    with pytest.raises(
        HubNotRunning, match=r"has not started.* A thread cannot start it; 'await hub\.publish"
    ):
        await asyncio.to_thread(hub.publish_sync, "chat", "x")
    async with hub:
        pass
    with pytest.raises(HubNotRunning, match="has stopped"):
        await asyncio.to_thread(hub.publish_sync, "chat", "x")


async def test_a_thread_that_waits_for_a_hub_that_stops_gets_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    async with hub:
        gate = Gate(hub.engine, "publish", monkeypatch)
        publishing = asyncio.create_task(asyncio.to_thread(hub.publish_sync, "chat", "x"))
        await gate.reached.wait()
    with pytest.raises(HubNotRunning, match="stopped while this thread waited"):
        await publishing


async def test_a_thread_waits_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle_module, "CALL_TIMEOUT", 0.01)
    async with Hub() as hub:
        Gate(hub.engine, "publish", monkeypatch)
        with pytest.raises(EngineUnavailable, match=r"within 0\.01 s"):
            await asyncio.to_thread(hub.publish_sync, "chat", "x")


async def test_a_child_that_was_forked_from_the_app_gets_an_error() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def publish() -> None:
        try:
            hub.publish_sync("chat", "x")
        except HubNotRunning as exc:
            theirs.send(str(exc))

    def in_a_thread() -> None:
        # The child's main thread is still on the event loop of its parent.
        thread = threading.Thread(target=publish)
        thread.start()
        thread.join()

    async with Hub() as hub:
        child = context.Process(target=in_a_thread)
        child.start()
        try:
            assert await asyncio.to_thread(ours.poll, DEADLINE)
            assert "forked" in ours.recv()
        finally:
            child.kill()
            child.join()
