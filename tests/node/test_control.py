"""Control: commands between nodes, such as to disconnect a user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from hubbub import EngineUnavailable, Hub
from hubbub.core.publication import Publication
from hubbub.node.control import CONTROL, Disconnect, Recheck
from hubbub.node.node import Node
from hubbub.testing.fake_engine import FakeEngine, FakeServer
from tests.clients import DEADLINE
from tests.nodes import running


class Client:
    """A connection that records how it was ended."""

    backlog = dropped = 0

    def __init__(self, node: Node, id_: str, user: str | None = None) -> None:
        self.id = id_
        self.user = user
        self.node = node
        self.ended = asyncio.Event()
        self.rechecked = asyncio.Event()
        self.ending: tuple[int, str] | None = None
        node.add(self)

    def tick(self, now: float) -> None:
        """Nothing is due."""

    def end(self, code: int, reason: str) -> None:
        self.ending = (code, reason)
        self.ended.set()
        self.node.remove(self)

    async def recheck(self) -> None:
        self.rechecked.set()


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def nodes(server: FakeServer) -> AsyncIterator[tuple[Node, Node]]:
    async with running(server) as one, running(server) as two:
        yield one, two


async def test_a_user_is_disconnected_wherever_it_is(nodes: tuple[Node, Node]) -> None:
    ann = [Client(node, f"{number}", "ann") for number, node in enumerate(nodes)]
    others = [
        Client(node, f"bob {number}", user) for node in nodes for number, user in enumerate(("bob", None))
    ]
    await nodes[0].command(Disconnect(4001, "go", user="ann"))
    async with asyncio.timeout(DEADLINE):
        for client in ann:
            await client.ended.wait()
    assert [client.ending for client in ann] == [(4001, "go")] * 2
    assert not any(client.ending for client in others)


async def test_a_connection_is_disconnected_wherever_it_is(nodes: tuple[Node, Node]) -> None:
    one, two = Client(nodes[1], "one", "ann"), Client(nodes[1], "two", "ann")
    await nodes[0].command(Disconnect(4001, "go", connection="one"))
    async with asyncio.timeout(DEADLINE):
        await one.ended.wait()
    assert two.ending is None


async def test_a_user_is_rechecked_wherever_it_is(nodes: tuple[Node, Node]) -> None:
    ann = [Client(node, f"{number}", "ann") for number, node in enumerate(nodes)]
    others = [
        Client(node, f"bob {number}", user) for node in nodes for number, user in enumerate(("bob", None))
    ]
    await nodes[0].command(Recheck("ann"))
    async with asyncio.timeout(DEADLINE):
        for client in ann:
            await client.rechecked.wait()
    assert [node.rechecks.count for node in nodes] == [1, 1]
    assert not any(client.rechecked.is_set() for client in others)
    assert not any(client.ended.is_set() for client in (*ann, *others))


async def test_a_node_rechecks_after_its_outage(server: FakeServer, nodes: tuple[Node, Node]) -> None:
    here, there = Client(nodes[0], "here", "ann"), Client(nodes[1], "there", "ann")
    server.engines[1].disconnect()
    await nodes[0].command(Recheck("ann"))
    async with asyncio.timeout(DEADLINE):
        await here.rechecked.wait()
        assert not there.rechecked.is_set()
        server.engines[1].reconnect()
        await there.rechecked.wait()


async def test_a_node_that_stops_waits_for_a_recheck(server: FakeServer) -> None:
    finish, finished = asyncio.Event(), asyncio.Event()

    class Slow(Client):
        async def recheck(self) -> None:
            self.rechecked.set()
            await finish.wait()
            finished.set()

    async with asyncio.timeout(DEADLINE):
        async with running(server) as node:
            client = Slow(node, "one", "ann")
            await node.command(Recheck("ann"))
            await client.rechecked.wait()
            asyncio.get_running_loop().call_soon(finish.set)
        assert finished.is_set()


async def test_a_node_carries_out_the_commands_of_its_outage(
    server: FakeServer, nodes: tuple[Node, Node]
) -> None:
    client = Client(nodes[1], "one", "ann")
    server.engines[1].disconnect()
    await nodes[0].command(Disconnect(4001, "go", user="ann"))
    assert client.ending is None
    server.engines[1].reconnect()
    async with asyncio.timeout(DEADLINE):
        await client.ended.wait()


async def test_a_command_of_a_newer_version_is_ignored(
    nodes: tuple[Node, Node], caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(nodes[0], "one", "ann")
    await nodes[0].publish(Publication(CONTROL, b"\x81\xa4type\xa4walk", "binary", id="x"))
    await nodes[0].command(Disconnect(4001, "go", user="ann"))
    async with asyncio.timeout(DEADLINE):
        await client.ended.wait()
    assert "Ignored a command" in caplog.text


async def test_the_control_channel_is_not_counted(nodes: tuple[Node, Node]) -> None:
    stats = nodes[0].stats()
    assert (stats["channels"], stats["subscriptions"]) == (0, 0)


async def test_a_node_does_not_start_without_its_engine(server: FakeServer) -> None:
    engine = FakeEngine(server)
    engine.is_disconnected = True
    with pytest.raises(EngineUnavailable):
        await Node(engine).start()
    assert not engine.channels


# In an app


hub = Hub()
app = FastAPI()
app.include_router(hub.router)


@app.websocket("/{user}")
async def socket(websocket: WebSocket, user: str) -> None:
    async with hub.connection(websocket, user=user) as client:
        await client.send_text(client.id)
        async for _ in client.iter_text():
            pass


@app.post("/disconnect")
async def disconnect(user: str | None = None, connection: str | None = None) -> None:
    await hub.disconnect(user=user, connection=connection, reason="enough")


@app.post("/recheck")
async def recheck(user: int) -> None:
    await hub.recheck(user=user)


def test_an_app_disconnects_a_user_or_a_connection() -> None:
    with TestClient(app) as client:
        for by in ("user", "connection"):
            with client.websocket_connect("/ann") as ann:
                target = {"user": "ann", "connection": ann.receive_text()}[by]
                assert client.post("/disconnect", params={by: target}).status_code == 200
                with pytest.raises(WebSocketDisconnect) as ended:
                    ann.receive_text()
                assert (ended.value.code, ended.value.reason) == (3503, "enough")


async def test_targetm_to_disconnect_is_one_thing() -> None:
    async with hub:
        with pytest.raises(ValueError, match="both or neither"):
            await hub.disconnect()
        with pytest.raises(ValueError, match="both or neither"):
            await hub.disconnect(user="ann", connection="1")
        with pytest.raises(ValueError, match="1006"):
            await hub.disconnect(user="ann", code=1006)
        assert (await hub.health()).ok


async def test_the_user_to_recheck_is_one() -> None:
    async with hub:
        with pytest.raises(ValueError, match="an empty one"):
            await hub.recheck(user="")
        for user in (None, True, b"ann", ["ann"]):
            with pytest.raises(TypeError, match="Expected a user as str, int or UUID"):
                await hub.recheck(user=user)  # type: ignore[arg-type]


async def test_own_endpoints_are_not_affected_by_a_recheck() -> None:
    with TestClient(app) as client, client.websocket_connect("/7") as socket:
        socket.receive_text()
        assert client.post("/recheck", params={"user": 7}).status_code == 200
        assert client.post("/disconnect", params={"user": "7"}).status_code == 200
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_text()
        assert ended.value.code == 3503


@pytest.mark.parametrize("first_fails", [True, False])
def test_tasks_that_subscribe_at_the_same_time_share_one_subscription(
    monkeypatch: pytest.MonkeyPatch, first_fails: bool
) -> None:
    outcomes: list[object] = []
    app, hub = FastAPI(), Hub()
    app.include_router(hub.router)
    subscribe = hub.engine.subscribe
    attempts = 0

    async def slow_subscribe(channel: str, history: object = None) -> object:
        nonlocal attempts
        if channel == "chat":
            attempts += 1
            await asyncio.sleep(0.05)
            if first_fails and attempts == 1:
                raise EngineUnavailable("the first time")
        return await subscribe(channel)

    monkeypatch.setattr(hub.engine, "subscribe", slow_subscribe)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with hub.connection(websocket) as client:
            outcomes.extend(
                await asyncio.gather(*(client.subscribe("chat") for _ in range(3)), return_exceptions=True)
            )
            await hub.publish("chat", "hello")
            await client.receive_text()

    with TestClient(app) as test, test.websocket_connect("/") as socket:
        assert socket.receive_text() == "hello"
        socket.send_text("bye")
    failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert [str(exc) for exc in failed] == (["the first time"] if first_fails else [])
    assert attempts == 1 + first_fails
