"""Presence and presence events in an app."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient

from hubbub import History, Hub, InvalidChannel, InvalidData, Presence
from hubbub.types import JoinLeave

hub = Hub(presence_ttl=1.5)
room = hub.channel("room:{room_id}", presence=True)
plain = hub.channel("plain")
app = FastAPI()
app.include_router(hub.router)


@app.websocket("/rooms/{room_id}/{user}")
async def in_room(websocket: WebSocket, room_id: str, user: str, join_leave: JoinLeave | None = None) -> None:
    async with hub.connection(websocket, user=user) as client:
        await client.subscribe(f"room:{room_id}", info={"typing": False}, join_leave=join_leave)
        await client.send_text("ready")
        async for _ in client.iter_text():
            await client.unsubscribe(f"room:{room_id}")


@app.get("/rooms/{room_id}")
async def entries(room_id: str) -> Presence:
    return await hub.presence(f"room:{room_id}")


def test_subscribers_of_a_channel_with_presence_are_present() -> None:
    with TestClient(app) as client, client.websocket_connect("/rooms/1/ann?join_leave=users") as ann:
        assert ann.receive_json()["entries"][0]["user"] == "ann"
        assert ann.receive_text() == "ready"
        with client.websocket_connect("/rooms/1/bob") as bob:
            assert bob.receive_text() == "ready"
            joined = ann.receive_json()
            assert joined["type"] == "join"
            assert joined["channel"] == "room:1"
            (entry,) = joined["entries"]
            assert (entry["user"], entry["info"]) == ("bob", {"typing": False})
            assert {each["user"] for each in client.get("/rooms/1").json()["entries"]} == {"ann", "bob"}
        assert ann.receive_json() == {"type": "leave", "channel": "room:1", "entries": [entry]}
        with client.websocket_connect("/rooms/1/bob") as bob:
            bob.receive_text()
            assert ann.receive_json()["type"] == "join"
            bob.send_text("unsubscribe")
            assert ann.receive_json()["type"] == "leave"
        assert [each["user"] for each in client.get("/rooms/1").json()["entries"]] == ["ann"]


def test_a_client_that_unsubscribes_while_it_is_entered_gets_nothing() -> None:
    hub = Hub()
    hub.channel("room", presence=True, history=History(size=10))
    app = FastAPI()
    app.include_router(hub.router)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        await hub.publish("room", "before")
        async with hub.connection(websocket) as client:
            joining = asyncio.create_task(client.subscribe("room", history=10, positions=True))
            await asyncio.sleep(0)
            await client.unsubscribe("room")
            await joining
            await client.send_text("end")

    with TestClient(app) as client, client.websocket_connect("/") as websocket:
        assert websocket.receive_text() == "end"


async def test_presence_of_a_channel_that_is_declared_without_it_is_refused() -> None:
    async with hub:
        for channel in ("plain", "undeclared"):
            with pytest.raises(InvalidChannel, match="presence=True"):
                await hub.presence(channel)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"info": "x" * 5000}, InvalidData, "at most 4096 bytes"),
        ({"info": object()}, InvalidData, "JSON"),
        ({"join_leave": "everything"}, ValueError, "'connections', 'users'"),
    ],
)
def test_wrong_info_and_join_leave_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    app = FastAPI()
    app.include_router(hub.router)
    raised: list[Exception] = []

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with hub.connection(websocket) as client:
            for channel in ("room:1", "plain"):
                try:
                    await client.subscribe(channel, **options)
                except (ValueError, TypeError) as exc:
                    raised.append(exc)
            await client.send_text("done")

    with TestClient(app) as client, client.websocket_connect("/") as socket:
        assert socket.receive_text() == "done"
    assert isinstance(raised[0], error)
    assert message in str(raised[0])
    assert len(raised) == 2


def test_presence_ttl_must_be_greater_than_0() -> None:
    with pytest.raises(ValueError, match="presence_ttl"):
        Hub(presence_ttl=0)
