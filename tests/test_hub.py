"""The hub in one process: its life, what it refuses, and publishing from where applications publish."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.testclient import TestClient
from pydantic import BaseModel

from hubbub import Hub, HubNotRunning, InvalidChannel, InvalidData, InvalidURL, Position
from hubbub.hub import hubs
from tests.clients import DEADLINE


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

    @app.post("/sync")
    def sync() -> None:
        hub.stats()

    return app


# Its life


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


async def test_a_hub_is_used_on_its_own_event_loop_only() -> None:
    async with Hub() as hub:
        with pytest.raises(HubNotRunning, match="another loop or a thread"):
            await asyncio.to_thread(asyncio.run, hub.publish("chat", "x"))
        with pytest.raises(HubNotRunning, match="make it 'async def'"):
            await asyncio.to_thread(hub.stats)


def test_include_router_starts_and_stops_the_hub_with_the_app_and_its_own_lifespan() -> None:
    hub = Hub()
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        seen.append("up")
        yield {"state": "kept"}
        seen.append("down")

    with TestClient(application(hub, lifespan=lifespan)) as client:
        assert client.post("/notes/chat", json={"text": "x"}).json() == [0, ""]
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


def test_without_a_lifespan_the_error_names_test_client() -> None:
    client = TestClient(application(Hub()))
    with pytest.raises(HubNotRunning, match="with TestClient"):
        client.post("/notes/chat", json={"text": "x"})


async def test_hubs_that_are_not_used_any_more_are_forgotten() -> None:
    hub = Hub()
    assert hub in hubs
    count = len(hubs)
    del hub
    gc.collect()
    assert len(hubs) < count


# What it refuses


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


# Publishing and membership, through Starlette's test client


def test_everyone_but_the_excluded_one_hears_what_is_published() -> None:
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


def test_who_has_unsubscribed_hears_nothing_until_they_subscribe_again() -> None:
    with TestClient(application(Hub())) as client, client.websocket_connect("/ws/chat") as ann:
        ann.receive_json()
        ann.send_text("leave")
        assert ann.receive_text() == "left"
        client.post("/notes/chat", json={"text": "missed"})
        ann.send_text("join again")
        assert ann.receive_text() == "joined"
        client.post("/notes/chat", json={"text": "heard"})
        assert ann.receive_json() == {"text": "heard"}


def test_an_endpoint_in_a_thread_is_told_that_it_cannot_use_the_hub() -> None:
    with TestClient(application(Hub())) as client, pytest.raises(HubNotRunning, match="async def"):
        client.post("/sync")


def test_a_hub_that_stops_closes_its_connections_and_lets_handlers_have_the_last_word() -> None:
    hub = Hub()
    running = AsyncExitStack()
    last_words: list[str] = []

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
        await hub.publish("chat", "left")
        last_words.append("left")

    @app.post("/stop")
    async def stop() -> None:
        async with asyncio.timeout(DEADLINE):
            await running.aclose()

    with TestClient(app) as client, client.websocket_connect("/ws") as ann:
        assert ann.receive_text() == "ready"
        client.post("/stop")
        assert ann.receive() == {"type": "websocket.close", "code": 1012, "reason": "restart"}
    assert last_words == ["left"]
