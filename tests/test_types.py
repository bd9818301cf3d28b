"""Arguments that are checked where they are given: users, histories, numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from hubbub import History, Hub
from hubbub.types import user_id


class Role(str, Enum):  # noqa: UP042
    ADMIN = "admin"


class Name(StrEnum):
    ANN = "ann"


class Number(IntEnum):
    SEVEN = 7


ID = UUID("12345678-1234-5678-1234-567812345678")

#: A user as it may be given, and its id.
USERS: list[tuple[Any, str]] = [
    ("ann", "ann"),
    (7, "7"),
    (-7, "-7"),
    (ID, str(ID)),
    (Role.ADMIN, "admin"),
    (Name.ANN, "ann"),
    (Number.SEVEN, "7"),
]


@pytest.mark.parametrize(("user", "id_"), USERS)
def test_a_user_is_its_str(user: Any, id_: str) -> None:
    assert user_id(user) == id_
    assert type(user_id(user)) is str


@pytest.mark.parametrize("user", [True, 7.0, b"ann", None, object(), ["ann"]])
def test_a_wrong_user_is_refused(user: Any) -> None:
    with pytest.raises(TypeError, match="Expected a user as str, int or UUID, but got"):
        user_id(user)


def test_a_user_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match="written as UTF-8"):
        user_id("\ud800")


def application(hub: Hub, user: Any, assign: bool) -> FastAPI:
    app = FastAPI()
    app.include_router(hub.router)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with hub.connection(websocket, user=None if assign else user) as client:
            if assign:
                client.user = user
            await client.subscribe("room")
            await client.send(client.user)
            async for _ in client.iter_text():
                pass

    @app.get("/users")
    async def users() -> list[str]:
        return list((await hub.presence("room")).users)

    @app.delete("/user")
    async def disconnect() -> None:
        await hub.disconnect(user=user)

    return app


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("user", "id_"), USERS[1:4])
def test_a_user_is_equal_everywhere(user: Any, id_: str, assign: bool) -> None:
    hub = Hub()
    hub.channel("room", presence=True)
    with TestClient(application(hub, user, assign)) as client, client.websocket_connect("/") as socket:
        assert socket.receive_text() == id_
        assert client.get("/users").json() == [id_]
        client.delete("/user")
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_text()
        assert ended.value.code == 3503


@pytest.mark.parametrize("assign", [False, True])
def test_a_wrong_user_is_refused_where_it_is_given(assign: bool) -> None:
    with (
        TestClient(application(Hub(), True, assign)) as client,
        pytest.raises(TypeError, match="but got bool"),
        client.websocket_connect("/") as socket,
    ):
        socket.receive()


@pytest.mark.parametrize("value", [7, True, b"id", object()])
async def test_a_wrong_connection_is_refused_where_it_is_given(value: Any) -> None:
    async with Hub() as hub:
        uses: list[Callable[[], Any]] = [
            lambda: hub.publish("chat", "x", exclude=value),
            lambda: hub.disconnect(connection=value),
        ]
        for use in uses:
            with pytest.raises(TypeError, match="Expected a Connection or the id of one"):
                await use()
        with pytest.raises(TypeError, match="Expected a user"):
            await hub.disconnect(user=[value])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="UTF-8"):
            await hub.publish("chat", "x", exclude="\ud800")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, ValueError, "size to be greater than 0, but got 0"),
        ({"size": -1}, ValueError, "size to be greater than 0, but got -1"),
        ({"size": 2**31}, ValueError, "size to be at most 2,147,483,647"),
        ({"size": 2**63}, ValueError, "size to be at most"),
        ({"size": 1.5}, TypeError, "size as int, but got 1.5"),
        ({"size": True}, TypeError, "size as int, but got True"),
        ({"size": "5"}, TypeError, "size as int, but got '5'"),
        ({"ttl": 0}, ValueError, "ttl to be greater than 0, but got 0"),
        ({"ttl": -1}, ValueError, "ttl to be greater than 0, but got -1"),
        ({"ttl": math.nan}, ValueError, "ttl to be greater than 0, but got nan"),
        ({"ttl": math.inf}, ValueError, "ttl to be finite, but got inf"),
        ({"ttl": 1e10}, ValueError, "ttl to be at most 3,155,760,000 s"),
        ({"ttl": True}, TypeError, "ttl as a number of seconds, but got True"),
        ({"ttl": "1h"}, TypeError, "ttl as a number of seconds, but got '1h'"),
    ],
)
def test_a_history_is_checked_where_it_is_made(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        History(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_message_size": 1.5}, TypeError, "max_message_size as int"),
        ({"outbox_limit": True}, TypeError, "outbox_limit as int"),
        ({"send_timeout": math.nan}, ValueError, "send_timeout to be greater than 0"),
        ({"close_timeout": "5"}, TypeError, "close_timeout as a number"),
        ({"presence_ttl": math.inf}, ValueError, "presence_ttl to be finite"),
    ],
)
def test_the_numbers_of_a_hub_are_checked(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Hub(**options)
