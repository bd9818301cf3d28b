"""Dependencies for every message: their order, their scope, and what FastAPI lets them ask for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Annotated, Any

import pytest
from fastapi import (
    BackgroundTasks,
    Cookie,
    Depends,
    Header,
    HTTPException,
    Query,
    Security,
    WebSocket,
    WebSocketException,
)
from fastapi.requests import HTTPConnection
from fastapi.security import SecurityScopes

from hubbub import (
    Channels,
    CurrentChannel,
    CurrentConnection,
    CurrentIdentity,
    Hub,
    Identity,
    Position,
    Publication,
)
from hubbub.testing import connect
from tests.channels.handlers import Said, Say, app_of, noting

ERROR = {"type": "error", "code": 100, "message": "internal error"}


async def test_dependencies_run_from_the_outside_to_the_inside() -> None:
    log: list[str] = []
    hub = Hub(dependencies=[Depends(noting(log, "hub"))])
    channels = Channels(dependencies=[Depends(noting(log, "collection"))])
    room = channels.channel("room:{room_id}", dependencies=[Depends(noting(log, "channel"))])
    own = Depends(noting(log, "handler"))

    @room.on_subscribe
    async def enter(through: Annotated[None, own]) -> None:
        log.append("on_subscribe")

    @room.on_publish
    async def say(message: Say, through: Annotated[None, own]) -> Said:
        log.append("on_publish")
        return Said(text=message.text)

    hub.include(channels, prefix="shop:", dependencies=[Depends(noting(log, "include"))])
    outside = ["hub", "include", "collection", "channel", "handler"]
    async with connect(app_of(hub), "shop:room:5") as client:
        assert log == [*outside, "on_subscribe"]
        log.clear()
        for text in "ab":
            await client.send(Say(text=text))
            assert await client.receive(Said) == Said(text=text)
        assert log == [*outside, "on_publish"] * 2


async def test_a_session_is_open_for_one_message_and_closed_before_its_publication() -> None:
    log: list[str] = []
    hub = Hub()
    room = hub.channel("room")

    async def session() -> AsyncIterator[str]:
        log.append("open")
        yield "session"
        log.append("commit")
        if "fail" in log:
            raise RuntimeError("the commit has failed")

    @room.on_publish
    async def say(message: Say, db: Annotated[str, Depends(session)], tasks: BackgroundTasks) -> Said:
        tasks.add_task(log.append, "background")
        return Said(text=message.text)

    publish = hub.engine.publish

    async def publish_and_note(publication: Publication, *args: Any) -> Position:
        if publication.channel == "room":
            log.append("publish")
        return await publish(publication, *args)

    hub.engine.publish = publish_and_note  # type: ignore[method-assign, assignment]
    async with connect(app_of(hub), "room") as client:
        await client.send(Say(text="x"))
        assert await client.receive(Said) == Said(text="x")
        await client.send("not JSON")
        assert (await client.receive())["code"] == 107
        assert log == ["open", "commit", "publish", "background"]
        log[:] = ["fail"]
        await client.send(Say(text="y"))
        assert await client.receive() == ERROR
        assert log == ["fail", "open", "commit"]


async def test_a_dependency_that_hides_the_failure_of_a_handler() -> None:
    hub = Hub()
    room = hub.channel("room")

    async def swallows() -> AsyncIterator[None]:
        with suppress(ValueError):
            yield

    @room.on_publish
    async def say(message: Say, through: Annotated[None, Depends(swallows)]) -> Said:
        raise ValueError("a secret")

    async with connect(app_of(hub), "room") as client:
        await client.send(Say())
        assert await client.receive() == ERROR


async def test_every_kind_of_parameter() -> None:
    hub = Hub()
    room = hub.channel("room:{room_id}")

    def scopes(security: SecurityScopes) -> list[str]:
        return security.scopes

    async def current(
        identity: CurrentIdentity, client: CurrentConnection, channel: CurrentChannel, http: HTTPConnection
    ) -> list[Any]:
        return [identity.user, client.user, channel.name, channel.params, http.url.path]

    def in_thread() -> bool:
        return threading.current_thread() is not threading.main_thread()

    @hub.on_connect
    async def connected(user: Annotated[str, Query()]) -> Identity:
        return Identity(user=user)

    @room.on_publish
    def say(
        message: Say,
        room_id: int,
        x: Annotated[str, Header()],
        session: Annotated[str, Cookie()],
        q: int,
        scopes: Annotated[list[str], Security(scopes, scopes=["write"])],
        current: Annotated[list[Any], Depends(current)],
        in_thread: Annotated[bool, Depends(in_thread)],
        identity: Identity,
    ) -> list[Any]:
        is_in_thread = threading.current_thread() is not threading.main_thread()
        return [room_id, x, session, q, scopes, current, in_thread, is_in_thread, identity.user]

    async with connect(
        app_of(hub),
        "room:5",
        headers={"x": "header"},
        cookies={"session": "s"},
        query={"user": "ann", "q": "7"},
    ) as client:
        await client.send(Say())
        seen = ["ann", "ann", "room:5", {"room_id": "5"}, "/channels/room:5"]
        assert await client.receive() == [5, "header", "s", 7, ["write"], seen, True, True, "ann"]


async def test_parameters_that_do_not_validate_are_named() -> None:
    hub = Hub()
    room = hub.channel("room:{room_id}")

    @room.on_publish
    async def say(message: Say, room_id: int, limit: Annotated[int, Query(le=3)] = 1) -> Said:
        return Said(text="")

    async with connect(app_of(hub), "room:x", query={"limit": "9"}) as client:
        await client.send(Say())
        error = await client.receive()
        assert (error["type"], error["code"]) == ("error", 107)
        assert {tuple(each["loc"]) for each in error["errors"]} <= {("query", "limit"), ("path", "room_id")}
        assert all(set(each) == {"loc", "msg", "type"} for each in error["errors"])


async def test_overrides_of_the_app() -> None:
    hub = Hub()
    room = hub.channel("room")

    async def original() -> str:
        return "original"

    @room.on_publish
    async def say(message: Say, word: Annotated[str, Depends(original)]) -> str:
        return word

    app = app_of(hub)

    def override(tasks: BackgroundTasks, q: str = "override") -> str:
        return q

    for overrides, answer in (({}, "original"), ({original: override}, "override")):
        app.dependency_overrides = dict(overrides)
        async with connect(app, "room") as client:
            await client.send(Say())
            assert await client.receive() == answer


async def test_context_variables_end_with_the_message() -> None:
    hub = Hub()
    room = hub.channel("room")
    variable: ContextVar[int] = ContextVar("variable", default=0)

    async def count() -> None:
        variable.set(variable.get() + 1)

    @room.on_publish
    async def say(message: Say, through: Annotated[None, Depends(count)]) -> int:
        await asyncio.sleep(0)
        return variable.get()

    async with connect(app_of(hub), "room") as client:
        for _ in range(3):
            await client.send(Say())
            assert await client.receive() == 1


async def test_state_lasts_as_long_as_the_connection() -> None:
    hub = Hub()
    room = hub.channel("room")

    async def count(websocket: WebSocket) -> int:
        websocket.state.count = getattr(websocket.state, "count", 0) + 1
        return int(websocket.state.count)

    @room.on_publish
    async def say(message: Say, number: Annotated[int, Depends(count)]) -> int:
        return number

    app = app_of(hub)
    for _ in range(2):
        async with connect(app, "room") as client:
            for number in (1, 2):
                await client.send(Say())
                assert await client.receive() == number


async def test_a_dependency_sends_over_its_socket() -> None:
    hub = Hub()
    room = hub.channel("room")

    async def greet(websocket: WebSocket) -> None:
        await websocket.send_json({"hello": 1})

    @room.on_publish
    async def say(message: Say, through: Annotated[None, Depends(greet)]) -> None: ...

    async with connect(app_of(hub), "room") as client:
        await client.send(Say())
        assert await client.receive() == {"hello": 1}


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (HTTPException(400, "bad"), {"code": 107, "message": "bad"}),
        (HTTPException(401, "who?"), {"code": 101, "message": "who?"}),
        (HTTPException(403), {"code": 103, "message": "Forbidden"}),
        (HTTPException(404), {"code": 102, "message": "Not Found"}),
        (HTTPException(409, {"a": 1}), {"code": 409, "message": "Conflict", "detail": {"a": 1}}),
        (HTTPException(429), {"code": 111, "message": "Too Many Requests"}),
        (HTTPException(503, "later"), {"code": 100, "message": "later"}),
        (KeyError("secret"), {"code": 100, "message": "internal error"}),
    ],
)
@pytest.mark.parametrize("in_dependency", [True, False])
async def test_errors_inside(raised: Exception, expected: dict[str, Any], in_dependency: bool) -> None:
    hub = Hub()
    room = hub.channel("room")

    async def fails() -> None:
        if in_dependency:
            raise raised

    @room.on_publish
    async def say(message: Say, through: Annotated[None, Depends(fails)]) -> Said:
        raise raised

    async with connect(app_of(hub), "room") as client:
        for _ in range(2):
            await client.send(Say())
            assert await client.receive() == {"type": "error", **expected}


@pytest.mark.parametrize("in_dependency", [True, False])
async def test_a_websocket_exception_closes(in_dependency: bool) -> None:
    hub = Hub()
    room = hub.channel("room")

    async def fails() -> None:
        if in_dependency:
            raise WebSocketException(4401, "enough")

    @room.on_publish
    async def say(message: Say, through: Annotated[None, Depends(fails)]) -> Said:
        raise WebSocketException(4401, "enough")

    async with connect(app_of(hub), "room") as client:
        await client.send(Say())
        with pytest.raises(Exception, match="enough") as closed:
            await client.receive()
    assert closed.value.code == 4401  # type: ignore[attr-defined]
