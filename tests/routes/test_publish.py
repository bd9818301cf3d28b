"""The POST door, and the refusals that all doors have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Query, WebSocketException
from httpx2 import ASGITransport, AsyncClient, Response

from hubbub import Channel, Connection, ConnectToken, Denied, History, Hub, Identity
from hubbub.testing import Refused, connect, events, lifespan
from tests.channels.handlers import Said, Say, Typing

PAGE = "https://friend.example"
log: list[str] = []


async def session() -> AsyncIterator[str]:
    log.append("open")
    yield "db"
    log.append("commit")
    if "fail" in log:
        raise RuntimeError("the commit has failed")


def make_app() -> FastAPI:
    hub = Hub(allow_origins=[PAGE], max_message_size=1000)
    room = hub.channel("room:{room_id}", history=History(), presence=True)
    text = hub.channel("text")
    binary = hub.channel("binary")
    raw = hub.channel("raw", client_publish=True)
    hub.channel("read-only")
    app = FastAPI()
    app.include_router(hub.router, prefix="/live")

    @hub.on_connect
    async def identify(token: ConnectToken) -> Identity:
        if token == "wrong":
            raise HTTPException(401, "wrong token", headers={"WWW-Authenticate": "Bearer"})
        return Identity(user=token)

    @room.on_subscribe
    async def enter(room_id: int, limit: Annotated[int, Query(le=3)] = 1) -> None:
        match room_id:
            case 13:
                raise HTTPException(403, "not your room")
            case 14:
                raise WebSocketException(4401, "closed")
            case 15:
                raise Denied("gone", code=102)
            case 16:
                raise HTTPException(418, {"reason": "tea"}, headers={"X-Reason": "tea"})

    @room.on_publish
    async def say(
        message: Say, channel: Channel, db: Annotated[str, Depends(session)], tasks: BackgroundTasks
    ) -> Said:
        tasks.add_task(log.append, "background")
        return Said(text=f"{channel.name} {db} {message.text}")

    @room.on_publish
    async def typing(message: Typing) -> None: ...

    @text.on_publish
    async def shout(message: str) -> str:
        return message.upper()

    @binary.on_publish
    async def reverse(message: bytes) -> bytes:
        return message[::-1]

    @binary.on_publish
    async def needs_connection(message: Say, client: Connection) -> None: ...

    @raw.on_subscribe
    async def anyone() -> None: ...

    app.state.hub = hub
    return app


@asynccontextmanager
async def posting() -> AsyncIterator[Callable[..., Any]]:
    app = make_app()
    log.clear()
    async with lifespan(app), AsyncClient(transport=ASGITransport(app), base_url="http://test") as http:

        async def post(channel: str, **options: Any) -> Response:
            return await http.post(f"/live/channels/{channel}", **options)

        yield post


async def test_a_message_is_handled_and_its_publication_is_the_answer() -> None:
    async with posting() as post:
        answer = await post("room:5", json={"type": "say", "text": "x"})
        assert answer.status_code == 200
        assert answer.json()["data"] == {"type": "said", "text": "room:5 db x"}
        assert answer.json()["id"].startswith("1:")
        assert log == ["open", "commit", "background"]
        nothing = await post("room:5", json={"type": "typing"})
        assert (nothing.status_code, nothing.content) == (204, b"")


async def test_a_commit_that_fails_publishes_nothing() -> None:
    async with posting() as post:
        log.append("fail")
        with pytest.raises(RuntimeError, match="the commit has failed"):
            await post("room:5", json={"type": "say", "text": "x"})
        log.clear()
        assert (await post("room:5", json={"type": "say", "text": "x"})).json()["id"].startswith("1:")


TEXT, BYTES = {"Content-Type": "text/plain"}, {"Content-Type": "application/octet-stream"}
FROM_PAGE = {"Origin": PAGE}


@pytest.mark.parametrize(
    ("channel", "options", "status", "answer"),
    [
        ("text", {"json": "hi"}, 200, {"id": None, "data": "HI"}),
        ("text", {"content": "hi", "headers": TEXT | FROM_PAGE}, 200, {"id": None, "data": "HI"}),
        ("text", {"content": "hi", "headers": TEXT}, 415, None),
        ("text", {"json": {"a": 1}}, 422, "Expected a JSON string."),
        ("text", {"content": b"\xff", "headers": TEXT | FROM_PAGE}, 422, "Expected text in UTF-8."),
        (
            "binary",
            {"content": b"\x01\x02", "headers": BYTES | FROM_PAGE},
            200,
            {"id": None, "base64": "AgE="},
        ),
        ("binary", {"content": b"\x01\x02", "headers": BYTES}, 415, None),
        ("binary", {"json": {"type": "say"}}, 405, None),
        ("raw", {"json": {"a": 1}}, 200, {"id": None, "data": {"a": 1}}),
        ("raw", {"json": "text"}, 200, {"id": None, "data": "text"}),
        ("raw", {"content": "<a>", "headers": TEXT | FROM_PAGE}, 200, {"id": None, "data": "<a>"}),
        ("raw", {"content": b"x", "headers": BYTES | FROM_PAGE}, 415, None),
        ("read-only", {"json": {}}, 403, "clients may not publish in this channel"),
        ("room:5", {"content": "{}", "headers": TEXT | FROM_PAGE}, 415, None),
        ("room:5", {"content": "{}"}, 415, None),
        ("room:5", {"json": {"type": "say", "text": "x" * 1000}}, 413, None),
        ("room:5", {"content": "{", "headers": {"Content-Type": "application/json"}}, 422, None),
        (
            "room:5",
            {"json": {"type": "say", "text": 7}},
            422,
            [{"type": "string_type", "loc": ["text"], "msg": "Input should be a valid string"}],
        ),
    ],
)
async def test_bodies(channel: str, options: dict[str, Any], status: int, answer: Any) -> None:
    async with posting() as post:
        got = await post(channel, **options)
        assert got.status_code == status
        if status == 200:
            assert got.json() == answer
        else:
            assert list(got.json()) == ["detail"]
            assert answer in (None, got.json()["detail"])


async def test_pages_of_other_hosts_read_refusals() -> None:
    async with posting() as post:
        answer = await post("nowhere", json={}, headers=FROM_PAGE)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (404, PAGE)
        assert (await post("text", json="x", headers={"Origin": "https://evil.example"})).status_code == 403
        cross = {"Sec-Fetch-Site": "cross-site"}
        assert (await post("text", json="x", headers=cross)).status_code == 403


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("room:5?token=wrong", 401, "wrong token"),
        ("room:13", 403, "not your room"),
        ("room:14", 403, "closed"),
        ("room:15", 404, "gone"),
        ("room:16", 418, {"reason": "tea"}),
        ("nowhere", 404, "there is no such channel"),
        ("x" * 300, 422, None),
        ("room:x", 422, "room_id"),
        ("room:5?limit=9", 422, "limit"),
    ],
)
async def test_all_doors_refuse_alike(path: str, status: int, detail: Any) -> None:
    app = make_app()
    channel, _, query = path.partition("?")
    parameters = dict([query.split("=")]) if query else {}
    found: list[Any] = []
    async with lifespan(app):
        for opening in (connect(app, channel, query=parameters), events(app, channel, query=parameters)):
            with pytest.raises(Refused) as refused:
                async with opening:
                    pass
            found.append((refused.value.status_code, refused.value.detail))
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as http:
            answer = await http.post(f"/live/channels/{path}", json={"type": "typing"})
            found.append((answer.status_code, answer.json()["detail"]))
    assert found[0] == found[1] == found[2]
    assert found[0][0] == status
    if status == 422 and detail:
        assert [error["loc"][-1] for error in found[0][1]] == [detail]
    elif detail is not None:
        assert found[0][1] == detail


def test_each_channel_with_handlers_is_in_the_document() -> None:
    app = make_app()
    paths = app.openapi()["paths"]
    assert set(paths) == {f"/live/channels/{name}" for name in ("room:{room_id}", "text", "binary")}
    room = paths["/live/channels/room:{room_id}"]["post"]
    assert [each["name"] for each in room["parameters"]] == ["room_id"]
    schema = room["requestBody"]["content"]["application/json"]["schema"]
    assert {each["$ref"].rpartition("/")[2] for each in schema["anyOf"]} == {"Say", "Typing"}
    assert list(paths["/live/channels/text"]["post"]["requestBody"]["content"]) == ["text/plain"]


async def test_the_routes_of_the_document_are_never_called() -> None:
    app = make_app()
    async with lifespan(app), AsyncClient(transport=ASGITransport(app), base_url="http://test") as http:
        for path in app.openapi()["paths"]:
            answer = await http.post(path.replace("{room_id}", "5"), json={"type": "typing"})
            assert answer.status_code in (204, 405, 422)
