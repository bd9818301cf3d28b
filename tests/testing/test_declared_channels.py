"""The testing kit on the doors of a hub."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query
from httpx2 import ASGITransport, AsyncClient
from pydantic import BaseModel

from hubbub import ConnectToken, History, Hub, Identity
from hubbub.testing import Closed, FrozenClock, Refused, connect, events, freeze


class Say(BaseModel):
    type: Literal["say"] = "say"
    text: str


class Said(BaseModel):
    type: Literal["said"] = "said"
    user: str | None
    text: str


hub = Hub(allow_origins=["https://friend.example"], max_user_connections=2)
app = FastAPI()
app.include_router(hub.router)


@hub.on_connect
async def identify(token: ConnectToken) -> Identity | None:
    if token == "wrong":
        raise HTTPException(401, "wrong token", headers={"WWW-Authenticate": "Bearer"})
    user, _, expires_at = (token or "").partition(" ")
    return Identity(user=user, expires_at=float(expires_at) if expires_at else None)


def greeting() -> str:
    return "hello"


room = hub.channel("room:{number}", history=History(ttl=60), presence=True)
files = hub.channel("file:{path:path}", client_publish=True)


@room.on_subscribe
async def enter(number: int, limit: Annotated[int, Query()] = 1) -> None:
    if number == 13:
        raise HTTPException(403, "closed")
    if number == 14:
        raise ZeroDivisionError("a bug on the way in")


@room.on_publish
async def say(message: Say, identity: Identity, greeting: Annotated[str, Depends(greeting)]) -> Said:
    if message.text == "bug":
        raise ZeroDivisionError("a bug in a handler")
    return Said(user=identity.user, text=f"{greeting} {message.text}")


@pytest.fixture(autouse=True)
def clock() -> Iterator[FrozenClock]:
    with freeze(hub) as clock:
        yield clock


def login(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_models_go_in_and_come_out() -> None:
    async with (
        connect(app, "room:7", headers=login("ann")) as ann,
        connect(app, "room:7", query={"token": "bob"}) as bob,
        events(app, "room:7") as stream,
    ):
        await ann.send(Say(text="ann"))
        for client in (ann, bob):
            assert await client.receive(Said) == Said(user="ann", text="hello ann")
        assert await stream.receive(Said) == Said(user="ann", text="hello ann")
        assert (await hub.presence("room:7")).users.keys() == {"ann", "bob"}


async def test_overrides_count_for_each_message() -> None:
    async with connect(app, "room:7") as client:
        for expected in ("hello", "salut"):
            await client.send(Say(text="x"))
            assert (await client.receive(Said)).text == f"{expected} x"
            app.dependency_overrides[greeting] = lambda: "salut"
    app.dependency_overrides.clear()


@pytest.mark.parametrize(
    ("channel", "options", "status"),
    [
        ("room:7", {"headers": login("wrong")}, 401),
        ("room:13", {}, 403),
        ("room:7", {"headers": {"Origin": "https://evil.example"}}, 403),
        ("nothing", {}, 404),
        ("room:x", {}, 422),
        ("room:7", {"query": {"limit": "x"}}, 422),
        ("room:7", {"query": {"since": "x"}}, 422),
        ("x" * 300, {}, 422),
    ],
)
@pytest.mark.parametrize("door", [connect, events])
async def test_refusals_have_their_status_on_both_doors(
    door: Any, channel: str, options: Any, status: int
) -> None:
    with pytest.raises(Refused) as refused:
        async with door(app, channel, **options):
            raise AssertionError
    assert refused.value.status_code == status
    assert refused.value.detail
    assert refused.value.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


async def test_an_allowed_page_may_connect() -> None:
    async with connect(app, "room:7", headers={"Origin": "https://friend.example"}) as client:
        await client.send(Say(text="x"))
        await client.receive(Said)


async def test_a_user_has_a_limited_number_of_clients() -> None:
    async with connect(app, "room:7", headers=login("ann")), connect(app, "room:8", headers=login("ann")):
        with pytest.raises(Refused) as refused:
            async with connect(app, "room:7", headers=login("ann")):
                raise AssertionError
        assert refused.value.status_code == 429
        async with connect(app, "room:7", headers=login("bob")):
            pass
    async with connect(app, "room:7", headers=login("ann")):
        pass


async def test_a_bug_on_the_way_in_is_raised() -> None:
    for door in (connect, events):
        with pytest.raises(ZeroDivisionError, match="a bug on the way in"):
            async with door(app, "room:14"):
                raise AssertionError


async def test_a_bug_in_a_handler_is_an_error_message_and_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connect(app, "room:7") as client:
        await client.send(Say(text="bug"))
        with caplog.at_level(logging.ERROR), pytest.raises(AssertionError, match=r'"code":100'):
            await client.receive(Said)
        assert "a bug in a handler" in caplog.text
        # The socket stays open.
        await client.send(Say(text="x"))
        await client.receive(Said)


@pytest.mark.parametrize("name", ["file:a/b", "file:ä ü", "file:100%", "file:a?b#c", "file:%41", "file:a//b"])
async def test_any_name_of_a_channel_reaches_its_door(name: str) -> None:
    async with connect(app, name) as client, events(app, name) as stream:
        await client.send("hi")
        assert await client.receive() == "hi"
        assert await stream.receive() == "hi"
        await hub.publish(name, "ho")
        assert await client.receive() == "ho"


async def test_the_prefix_of_the_router_is_found() -> None:
    inner, outer, prefixed = Hub(), APIRouter(prefix="/live"), FastAPI()
    inner.channel("news", client_publish=True)
    outer.include_router(inner.router, prefix="/v1")
    prefixed.include_router(outer)
    async with connect(prefixed, "news") as client:
        await client.send("hi")
        assert await client.receive() == "hi"
    async with connect(prefixed, path="/live/v1/channels/news"):
        pass


async def test_an_app_without_one_door_is_refused() -> None:
    none, two, tenants = FastAPI(), FastAPI(), FastAPI()
    for prefix in ("/a", "/b"):
        two.include_router(Hub().router, prefix=prefix)
    tenants.include_router(Hub().router, prefix="/{tenant}")
    for wrong, text in [
        (none, "but got one without"),
        (two, r"but got /a/channels/\{channel:path\}, /b/channels/\{channel:path\}"),
        (tenants, r"but got /\{tenant\}/channels"),
    ]:
        for door in (connect, events):
            with pytest.raises(ValueError, match=text):
                async with door(wrong, "news"):
                    raise AssertionError


@pytest.mark.parametrize("door", ["socket", "stream"])
async def test_a_token_expires_by_the_frozen_clock(door: str, clock: FrozenClock) -> None:
    token = login(f"ann {clock.time() + 60}")
    if door == "socket":
        async with connect(app, "room:7", headers=token) as client:
            await clock.advance(34)
            await client.receive_nothing(seconds=0.01)
            await clock.advance(2)
            assert (await client.receive())["type"] == "expiring"
            await clock.advance(30)
            with pytest.raises(Closed) as closed:
                await client.receive()
            assert closed.value.code == 3005
    else:
        async with events(app, "room:7", headers=token) as stream:
            assert (await stream.receive_event()).name == "subscribed"
            await clock.advance(36)
            assert (await stream.receive_event()).name == "expiring"
            await clock.advance(30)
            assert (await stream.receive_event()).name == "close"
            with pytest.raises(Closed):
                await stream.receive_event()


async def test_a_refresh_is_in_time_by_the_frozen_clock(clock: FrozenClock) -> None:
    async with connect(app, "room:7", headers=login(f"ann {clock.time() + 60}")) as client:
        await clock.advance(40)
        assert (await client.receive())["type"] == "expiring"
        await client.send({"type": "refresh", "token": f"ann {clock.time() + 600}"})
        assert await client.receive() == {"type": "refreshed", "expires": 600}
        await clock.advance(300)
        await client.send(Say(text="still here"))
        await client.receive(Said)


async def test_a_client_resumes_until_the_history_has_expired(clock: FrozenClock) -> None:
    async with connect(app, "room:7", query={"positions": 1}) as client:
        position = (await client.receive())["id"]
        await client.send(Say(text="x"))
        assert (await client.receive())["type"] == "publication"
        async with connect(app, "room:7", query={"since": position}) as again:
            assert (await again.receive())["recovered"] is True
            assert (await again.receive())["data"]["text"] == "hello x"
        async with events(app, "room:7", last_event_id=position) as stream:
            assert (await stream.receive_event()).name == "subscribed"
            assert (await stream.receive(Said)).text == "hello x"
        await clock.advance(61)
        async with connect(app, "room:7", query={"since": position}) as late:
            assert (await late.receive())["recovered"] is False


async def test_each_test_begins_with_empty_channels() -> None:
    async with connect(app, "room:7", query={"history": 10}) as client:
        await client.receive_nothing(seconds=0.01)


async def test_posts_reach_the_clients() -> None:
    async with (
        connect(app, "room:7") as client,
        AsyncClient(transport=ASGITransport(app), base_url="http://testserver") as http,
    ):
        answer = await http.post("/channels/room:7", json={"text": "x"}, headers=login("ann"))
        assert (answer.status_code, answer.json()["data"]["text"]) == (200, "hello x")
        assert (await client.receive(Said)).user == "ann"


async def test_a_user_is_disconnected_on_both_doors() -> None:
    async with (
        connect(app, "room:7", headers=login("ann")) as client,
        events(app, "room:7", headers=login("ann")) as stream,
    ):
        await hub.disconnect(user="ann", code=4001, reason="out")
        with pytest.raises(Closed, match="closed with 4001, 'out'"):
            await client.receive()
        assert [event.name async for event in stream] == ["subscribed", "close"]
    assert asyncio.all_tasks() == {asyncio.current_task()}
