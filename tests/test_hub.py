"""The hub in one process: wrong arguments, publishing, and subscriptions through Starlette's test client."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from pydantic import BaseModel

from hubbub import Hub, InvalidChannel, InvalidData, InvalidURL, Position
from hubbub.hub import hubs


class Note(BaseModel):
    text: str


def application(hub: Hub, **options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.include_router(hub.router)

    @app.websocket("/ws/{channel}")
    async def ws(websocket: WebSocket, channel: str) -> None:
        async with hub.connection(websocket, user="ann") as client:
            await client.subscribe(channel)
            await client.send_json({"id": client.id, "user": client.user})
            async for text in client.iter_text():
                if text == "leave":
                    await client.unsubscribe(channel)
                    await client.unsubscribe(channel)
                    await client.send_text("left")
                elif text == "join again":
                    await client.subscribe(channel)
                    await client.subscribe(channel)
                    await client.send_text("joined")
                else:
                    await hub.publish(channel, text, exclude=client)

    @app.post("/notes/{channel}")
    async def note(channel: str, note: Note, exclude: str | None = None) -> Position:
        return await hub.publish(channel, note, exclude=exclude)

    return app


async def test_hubs_that_are_not_used_any_more_are_freed() -> None:
    hub = Hub()
    assert hub in hubs
    count = len(hubs)
    del hub
    gc.collect()
    assert len(hubs) < count


# Wrong arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "carrier-pigeon://loft"}, "carrier-pigeon"),
        ({"allow_origins": "https://example.com"}, "list of origins"),
        ({"allow_origins": ["https://example.com/"]}, "without a path"),
        ({"max_message_size": 0}, "max_message_size to be greater than 0"),
        ({"outbox_limit": -1}, "outbox_limit to be greater than 0"),
        ({"send_timeout": 0}, "send_timeout to be greater than 0"),
        ({"close_timeout": 0}, "close_timeout to be greater than 0"),
        ({"slow_consumer": "panic"}, "slow_consumer to be one of"),
    ],
)
def test_parameters_out_of_range_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hub(**options)


def test_an_unknown_scheme_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(InvalidURL, match="memory://"):
        Hub("carrier-pigeon://user:secret@loft")


async def test_bad_channels_and_data_are_refused() -> None:
    async with Hub() as hub:
        for channel in ("", "x" * 256, "line\nbreak"):
            with pytest.raises(InvalidChannel):
                await hub.publish(channel, "x")
        with pytest.raises(InvalidData):
            await hub.publish("chat", object())


# Publishing and subscriptions


def test_all_subscribers_but_the_excluded_one_get_a_publication() -> None:
    with (
        TestClient(application(Hub())) as client,
        client.websocket_connect("/ws/chat") as ann,
        client.websocket_connect("/ws/chat") as bob,
    ):
        ann_id = ann.receive_json()["id"]
        assert bob.receive_json()["user"] == "ann"
        client.post("/notes/chat", params={"exclude": ann_id}, json={"text": "for bob"})
        client.post("/notes/chat", json={"text": "for both"})
        assert bob.receive_json() == {"text": "for bob"}
        assert bob.receive_json() == {"text": "for both"}
        assert ann.receive_json() == {"text": "for both"}
        ann.send_text("not for me")
        assert bob.receive_text() == "not for me"
        client.post("/notes/other", json={"text": "elsewhere"})
        client.post("/notes/chat", json={"text": "last"})
        assert ann.receive_json() == bob.receive_json() == {"text": "last"}


def test_a_client_that_has_unsubscribed_gets_no_publications_until_it_subscribes_again() -> None:
    with TestClient(application(Hub())) as client, client.websocket_connect("/ws/chat") as ann:
        ann.receive_json()
        ann.send_text("leave")
        assert ann.receive_text() == "left"
        client.post("/notes/chat", json={"text": "missed"})
        ann.send_text("join again")
        assert ann.receive_text() == "joined"
        client.post("/notes/chat", json={"text": "new"})
        assert ann.receive_json() == {"text": "new"}
