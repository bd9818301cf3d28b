"""Subscriptions of one connection: envelopes, ids, and the order of the messages that the client gets."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from hubbub import Connection, History, Hub, Position, Unrecoverable

SUBSCRIBED, PUBLICATION = "subscribed", "publication"


class Served:
    """A hub on a server, which publishes to "chat" the messages of its clients.

    A message that begins with "not to me" excludes the connection that it came from.
    """

    def __init__(self, **declared: Any) -> None:
        self.hub = Hub()
        self.hub.channel("chat", **declared)
        self.app = FastAPI()
        self.app.include_router(self.hub.router)
        self.app.websocket("/ws")(self.endpoint)
        #: For the next subscriptions.
        self.options: dict[str, Any] = {"positions": True}
        self.connections: list[Connection] = []

    async def endpoint(self, websocket: WebSocket) -> None:
        async with self.hub.connection(websocket, user="ann") as client:
            self.connections.append(client)
            await self.subscribe(client)
            async for text in client.iter_text():
                if text == "again":
                    await client.unsubscribe("chat")
                elif text == "back":
                    await self.subscribe(client)
                else:
                    exclude = client if text.startswith("not to me") else None
                    await self.hub.publish("chat", text, exclude=exclude)

    async def subscribe(self, client: Connection) -> None:
        try:
            position = await client.subscribe("chat", **self.options)
        except Unrecoverable as exc:
            await client.send_json({"unrecoverable": f"{exc.offset}:{exc.epoch}"})
        else:
            await client.send_json({"position": str(position)})

    @contextmanager
    def client(self) -> Iterator[TestClient]:
        with TestClient(self.app) as client:
            yield client


def opened(socket: WebSocketTestSession) -> dict[str, Any]:
    """Receive the opening message."""
    opening: dict[str, Any] = socket.receive_json()
    assert (opening["type"], opening["channel"]) == (SUBSCRIBED, "chat")
    return opening


def epoch_of(message: dict[str, Any]) -> str:
    return Position.parse(message["id"]).epoch


def publication(id: str | None, data: object) -> dict[str, Any]:  # noqa: A002
    return {"type": PUBLICATION, "channel": "chat", "id": id, "data": data}


# Envelopes


def test_a_client_gets_the_id_of_each_publication() -> None:
    served = Served(history=History())
    with served.client() as client, client.websocket_connect("/ws") as socket:
        opening = opened(socket)
        epoch = epoch_of(opening)
        assert opening == {"type": SUBSCRIBED, "channel": "chat", "id": f"0:{epoch}"}
        assert socket.receive_json() == {"position": f"0:{epoch}"}
        for number in (1, 2):
            socket.send_text(f"text {number}")
            assert socket.receive_json() == publication(f"{number}:{epoch}", f"text {number}")


def test_a_channel_without_history_has_no_ids() -> None:
    served = Served()
    with served.client() as client:
        with client.websocket_connect("/ws") as socket:
            assert opened(socket) == {"type": SUBSCRIBED, "channel": "chat", "id": None}
            assert socket.receive_json() == {"position": "start"}
            socket.send_text("hi")
            assert socket.receive_json() == publication(None, "hi")
        for since in ("start", "3:abc"):
            served.options["since"] = since
            with client.websocket_connect("/ws") as socket:
                assert opened(socket) == {
                    "type": SUBSCRIBED,
                    "channel": "chat",
                    "id": None,
                    "recovered": False,
                }


def test_a_client_resumes_with_the_last_id() -> None:
    served = Served(history=History())
    with served.client() as client:
        with client.websocket_connect("/ws") as socket:
            opening = opened(socket)
            socket.receive_json()
            for number in range(3):
                socket.send_text(str(number))
                socket.receive_json()
        epoch = epoch_of(opening)
        for since in (f"1:{epoch}", Position(1, epoch)):
            served.options = {"positions": True, "since": since}
            with client.websocket_connect("/ws") as socket:
                assert opened(socket) == {**opening, "id": f"1:{epoch}", "recovered": True}
                assert socket.receive_json() == publication(f"2:{epoch}", "1")
                assert socket.receive_json() == publication(f"3:{epoch}", "2")
                assert socket.receive_json() == {"position": f"3:{epoch}"}


def test_a_client_that_resumes_too_late_is_subscribed_and_learns_it() -> None:
    served = Served(history=History())
    served.options = {"positions": True, "since": "start"}
    with served.client() as client:
        with client.websocket_connect("/ws") as socket:
            assert opened(socket)["recovered"] is True
            socket.receive_json()
            for number in range(3):
                socket.send_text(str(number))
                epoch = epoch_of(socket.receive_json())
        for since in (f"99:{epoch}", "1:other"):
            served.options["since"] = since
            with client.websocket_connect("/ws") as socket:
                opening = opened(socket)
                assert opening["recovered"] is False
                assert {"position": opening["id"]} == socket.receive_json()
                socket.send_text("new")
                assert socket.receive_json()["data"] == "new"


def test_history_has_ids_and_begins_before_them() -> None:
    served = Served(history=History())
    served.options["history"] = 2
    with served.client() as client, client.websocket_connect("/ws") as first:
        opened(first)
        first.receive_json()
        for number in range(3):
            first.send_text(str(number))
            epoch = epoch_of(first.receive_json())
        with client.websocket_connect("/ws") as socket:
            assert opened(socket) == {"type": SUBSCRIBED, "channel": "chat", "id": f"1:{epoch}"}
            assert [socket.receive_json()["id"] for _ in range(2)] == [f"2:{epoch}", f"3:{epoch}"]
            assert socket.receive_json() == {"position": f"3:{epoch}"}


def test_a_loss_after_the_subscription_closes_with_3010() -> None:
    served = Served(history=History())
    with served.client() as client, client.websocket_connect("/ws") as socket:
        opened(socket)
        socket.receive_json()
        socket.send_text("1")
        socket.receive_json()

        @served.app.delete("/history")
        async def forget() -> None:
            await served.hub.remove_history("chat")

        assert client.delete("/history").status_code == 200
        socket.send_text("2")
        closing = socket.receive()
        assert (closing["type"], closing["code"]) == ("websocket.close", 3010)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": [1, None]}, {"data": {"a": [1, None]}}),
        (b"\x00\xff", {"base64": b64encode(b"\x00\xff").decode()}),
        ('quotes " and \u2028', {"data": 'quotes " and \u2028'}),
    ],
)
def test_each_kind_of_data_is_in_the_envelope(data: object, expected: dict[str, Any]) -> None:
    served = Served(history=History())

    @served.app.post("/publish")
    async def publish() -> None:
        await served.hub.publish("chat", data)

    with served.client() as client, client.websocket_connect("/ws") as socket:
        opened(socket)
        socket.receive_json()
        client.post("/publish")
        message = json.loads(socket.receive()["text"])
        assert {key: message[key] for key in message if key in ("data", "base64")} == expected


# Exclude


def test_an_excluded_connection_resumes_without_it_and_a_new_one_gets_it() -> None:
    """The ids continue: the client need not count."""
    served = Served(history=History())
    with served.client() as client, client.websocket_connect("/ws") as socket:
        epoch = epoch_of(opened(socket))
        socket.receive_json()
        socket.send_text("not to me 1")
        socket.send_text("to all 2")
        assert socket.receive_json() == publication(f"2:{epoch}", "to all 2")
        served.options = {"positions": True, "since": f"0:{epoch}"}
        socket.send_text("again")
        socket.send_text("back")
        assert opened(socket)["recovered"] is True
        assert socket.receive_json() == publication(f"2:{epoch}", "to all 2")
        assert socket.receive_json() == {"position": f"2:{epoch}"}
        with client.websocket_connect("/ws") as other:
            opened(other)
            assert other.receive_json() == publication(f"1:{epoch}", "not to me 1")


# Arguments


@pytest.mark.parametrize("since", ["", "17", "x:y", "-1:a", "1" * 19 + ":a", "1:\n"])
def test_a_since_that_is_no_id_closes_that_client_without_a_traceback(since: str) -> None:
    served = Served(history=History())
    served.options["since"] = since
    with (
        served.client() as client,
        client.websocket_connect("/ws") as socket,
        pytest.raises(WebSocketDisconnect) as closed,
    ):
        socket.receive_json()
    assert closed.value.code == 1008
    assert closed.value.reason.startswith("Expected the id of a position, such as '17:c0ffee42', but got")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"history": -1}, ValueError, "at least 0, but got -1"),
        ({"history": 1.5}, TypeError, "history as int"),
        ({"since": 17}, TypeError, "Expected a position or its id"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    served = Served(history=History())
    served.options = options
    with (
        served.client() as client,
        pytest.raises(error, match=message),
        client.websocket_connect("/ws") as socket,
    ):
        socket.receive_json()


def test_one_subscription_has_one_form() -> None:
    served = Served(history=History())

    def ask_for_another() -> None:
        with served.client() as client, client.websocket_connect("/ws") as socket:
            opened(socket)
            socket.receive_json()
            served.options = {}
            socket.send_text("back")
            socket.receive_json()

    with pytest.raises(ValueError, match="Expected positions=True as in the present subscription"):
        ask_for_another()


# Presence


def test_subscribe_returns_the_position_of_the_join() -> None:
    """In a channel with presence, where a publication comes while the client is entered."""
    served = Served(history=History(), presence=True)
    served.options = {}
    engine = served.hub.engine
    update = engine.update_presence

    async def publish_meanwhile(*args: Any, **kwargs: Any) -> bool:
        done = await update(*args, **kwargs)
        if not served.options:
            served.options = {"history": 0}
            await served.hub.publish("chat", "meanwhile")
        return done

    engine.update_presence = publish_meanwhile  # type: ignore[method-assign]
    with served.client() as client, client.websocket_connect("/ws") as socket:
        answer = socket.receive_json()
        position = Position.parse(answer["position"])
        socket.send_text("next")
        assert socket.receive_text() == "next"
        assert position.offset == 1
    assert len(served.connections) == 1


def test_presence_is_undone_when_joining_fails() -> None:
    served = Served(history=History(), presence=True)
    served.options = {"since": "3:other"}

    @served.app.get("/connections")
    async def connections() -> int:
        return len(await served.hub.presence("chat"))

    with served.client() as client, client.websocket_connect("/ws") as socket:
        assert "unrecoverable" in socket.receive_json()
        # A task removes the entry; it does so before the next one is entered.
        served.options = {}
        socket.send_text("back")
        assert "position" in socket.receive_json()
        assert client.get("/connections").json() == 1
        served.options = {"since": "3:other"}
        socket.send_text("again")
        socket.send_text("back")
        assert "unrecoverable" in socket.receive_json()
        with client.websocket_connect("/ws") as other:
            assert "unrecoverable" in other.receive_json()


def test_presence_comes_after_missed_publications_and_before_new_ones() -> None:
    served = Served(history=History(), presence=True)
    served.options = {"positions": True, "history": 5, "join_leave": "connections"}
    with served.client() as client, client.websocket_connect("/ws") as first:
        opened(first)
        assert [each["user"] for each in first.receive_json()["entries"]] == ["ann"]
        first.receive_json()
        first.send_text("hi")
        epoch = epoch_of(first.receive_json())
        with client.websocket_connect("/ws") as socket:
            opened(socket)
            assert socket.receive_json() == publication(f"1:{epoch}", "hi")
            snapshot = socket.receive_json()
            assert (snapshot["type"], snapshot["channel"]) == ("presence", "chat")
            me = served.connections[1].id
            assert me in [each["connection"] for each in snapshot["entries"]]
            assert socket.receive_json() == {"position": f"1:{epoch}"}
            joined = first.receive_json()
            assert (joined["type"], [each["connection"] for each in joined["entries"]]) == ("join", [me])
        assert first.receive_json()["type"] == "leave"
