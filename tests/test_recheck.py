"""Rechecks through the doors: a client whose permission is gone does not stay, however early it goes."""

from __future__ import annotations

import gc
import weakref
from typing import Annotated

import pytest
from fastapi import FastAPI, HTTPException, Query
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from hubbub import Connection, Hub, Identity


class Shop:
    """An app whose users have permissions that may change at any moment."""

    def __init__(self) -> None:
        self.allowed = {"ann", "bob"}
        #: The connections of sockets.
        self.connections: list[weakref.ref[Connection]] = []
        #: Users whose permission is removed right after it was checked for the first time.
        self.hasty: set[str] = set()
        self.checks: list[str | None] = []
        self.hub = hub = Hub()
        room = hub.channel("room")
        self.app = FastAPI()
        self.app.include_router(hub.router)
        self.app.post("/revoke")(self.revoke)

        @hub.on_connect
        async def connect(user: Annotated[str, Query()]) -> Identity:
            return Identity(user=user)

        @room.on_subscribe
        async def enter(identity: Identity) -> None:
            self.checks.append(identity.user)
            if identity.user not in self.allowed:
                raise HTTPException(403, "not your room")
            if identity.user in self.hasty:
                await self.revoke(identity.user)

        @room.on_publish
        async def say(message: str, connection: Connection) -> str:
            self.connections.append(weakref.ref(connection))
            return message

    async def revoke(self, user: str) -> None:
        self.allowed.discard(user)
        await self.hub.recheck(user=user)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_a_socket_whose_permission_is_gone_is_closed(shop: Shop) -> None:
    with (
        TestClient(shop.app) as client,
        client.websocket_connect("/channels/room?user=ann&positions=1") as ann,
        client.websocket_connect("/channels/room?user=bob&positions=1") as bob,
    ):
        assert ann.receive_json()["type"] == bob.receive_json()["type"] == "subscribed"
        assert client.post("/revoke", params={"user": "ann"}).status_code == 200
        with pytest.raises(WebSocketDisconnect) as closed:
            ann.receive_text()
        assert (closed.value.code, closed.value.reason) == (3507, "not your room")
        assert client.post("/revoke", params={"user": "bob"}).status_code == 200
        with pytest.raises(WebSocketDisconnect) as closed:
            bob.receive_text()
        assert closed.value.code == 3507
    assert shop.checks == ["ann", "bob", "ann", "bob"]


def test_a_permission_that_goes_before_the_socket_is_accepted_is_noticed(shop: Shop) -> None:
    shop.hasty.add("ann")
    with (
        TestClient(shop.app) as client,
        client.websocket_connect("/channels/room?user=ann") as ann,
        pytest.raises(WebSocketDisconnect) as closed,
    ):
        ann.receive_text()
    assert closed.value.code == 3507
    assert shop.checks == ["ann", "ann"]


def test_a_connection_that_has_ended_is_freed_without_the_garbage_collector(shop: Shop) -> None:
    with TestClient(shop.app) as client:
        gc.collect()
        gc.disable()
        try:
            with client.websocket_connect("/channels/room?user=ann") as ann:
                ann.send_text("hello")
                assert ann.receive_text() == "hello"
            (connection,) = shop.connections
            # The server's side of the socket may end a moment after the client's.
            client.post("/revoke", params={"user": "bob"})
            assert connection() is None
        finally:
            gc.enable()


def test_a_permission_that_goes_before_an_event_stream_begins_is_noticed(shop: Shop) -> None:
    shop.hasty.add("ann")
    with TestClient(shop.app) as client:
        response = client.get("/channels/room?user=ann")
    assert response.status_code == 200
    assert "event: close\ndata: " in response.text
    assert '"code":3507' in response.text
    assert shop.checks == ["ann", "ann"]
