"""Channels that are declared: patterns, what is refused, and what is said about a channel that is not one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient

from hubbub import ChannelDeclaration, History, Hub, InvalidChannel, Position

KEPT = History(size=5)


def test_patterns_say_which_channels_are_meant() -> None:
    for pattern, fits, others in (
        ("chat", ["chat"], ["chats", "chat:1", "Chat"]),
        (
            "room:{room_id}",
            ["room:1", "room:größe", "room:a.b"],
            ["room:", "room:1:2", "room:a/b", "xroom:1"],
        ),
        ("{a}/{b}", ["x/y"], ["x", "x/y/z", "/y"]),
        ("a.b", ["a.b"], ["axb"]),
        ("file:{path:path}", ["file:a", "file:a/b:c", "file:/"], ["file:", "files:a"]),
        ("{user}:{rest:path}", ["ann:a", "ann:a:b/c"], ["ann", "a/b:c", ":a"]),
        ("{rest:path}/end", ["a/end", "a/b/end", "end/end"], ["/end", "a/end/", "end"]),
    ):
        channel = ChannelDeclaration(pattern)
        assert [name for name in (*fits, *others) if channel.matches(name)] == fits


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "",
            "room:{",
            "room:}",
            "room:{}",
            "room:{1}",
            "{a}:{a}",
            "{a{b}}",
            "{a:}",
            "{a:int}",
            "{a}:{a:path}",
        ),
        *("{a}{b}", "{a:path}:{b:path}", "line\nbreak", "{a}\x01", "x" * 256, 7, None),
    ],
)
def test_bad_patterns_are_refused(pattern: Any) -> None:
    with pytest.raises(InvalidChannel, match="Expected"):
        Hub().channel(pattern)


def test_a_channel_is_declared_once() -> None:
    hub = Hub()
    hub.channel("room:{id}")
    with pytest.raises(InvalidChannel, match="declared twice"):
        hub.channel("room:{id}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 50}, r"History\(size=100, ttl=3600\), but got 50"),
        ({"history": True}, "but got True"),
        ({"history": {"size": 5}}, "but got {'size': 5}"),
        ({"presence": "yes"}, "Expected True or False for the presence of 'room', but got 'yes'"),
        ({"presence": None}, "but got None"),
    ],
)
def test_what_is_no_history_and_no_presence_is_refused(options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Hub().channel("room", **options)


@pytest.mark.parametrize(
    ("channel", "advice"),
    [
        ("room:a:b", r"'room:a:b' does not match 'room:{r}': {r} matches no ':'; use {r:path}\."),
        ("room:a/b", r"{r} matches no '/'; use {r:path}\."),
        ("rooms:a", r"The nearest pattern is 'room:{r}'\."),
        ("plain:1", r"Add it: hub\.channel\('plain:{p}', history=History\(\)\)\."),
        ("something else", r"Declare it: hub\.channel\(…, history=History\(\)\)\."),
    ],
)
async def test_a_history_that_is_not_there_is_an_error_that_names_the_nearest_pattern(
    channel: str, advice: str
) -> None:
    hub = Hub()
    hub.channel("plain:{p}")
    hub.channel("room:{r}", history=KEPT)
    async with hub:
        with pytest.raises(InvalidChannel, match=f"{channel!r} is not\\. .*{advice}$"):
            await hub.history(channel)
        # Without a history, they are channels like others.
        await hub.publish(channel, "x")
        await hub.remove_history(channel)


async def test_the_limit_of_a_history_is_a_number() -> None:
    hub = Hub()
    hub.channel("room", history=KEPT)
    async with hub:
        for limit, error in ((-1, ValueError), (True, TypeError), ("5", TypeError), (1.5, TypeError)):
            with pytest.raises(error, match="Expected limit"):
                await hub.history("room", limit=limit)  # type: ignore[arg-type]


def on_a_socket(hub: Hub, use: Callable[[Any], Awaitable[object]]) -> object:
    """What comes of ``use(client)``, or what it raises."""
    app = FastAPI()
    app.include_router(hub.router)
    outcomes: list[object] = []

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with hub.connection(websocket) as client:
            try:
                outcomes.append(await use(client))
            except Exception as exc:
                outcomes.append(exc)

    with TestClient(app) as client, client.websocket_connect("/") as socket:
        assert socket.receive()["code"] == 1000
    return outcomes[0]


@pytest.mark.parametrize(
    ("channel", "options", "error", "message"),
    [
        ("room:a:b", {"history": 5}, InvalidChannel, "use {r:path}"),
        ("room:a:b", {"since": Position(1, "x")}, InvalidChannel, "use {r:path}"),
        ("room:a:b", {"since": "1:x", "history": 5, "positions": True}, InvalidChannel, "use {r:path}"),
        ("room:a", {"history": -1}, ValueError, "history to be at least 0"),
        ("room:a", {"history": True}, TypeError, "history as int"),
        ("room:a", {"history": "5"}, TypeError, "history as int"),
    ],
)
def test_a_connection_cannot_subscribe_to_a_history_that_is_not_there(
    channel: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    hub = Hub()
    hub.channel("room:{r}", history=KEPT)
    outcome = on_a_socket(hub, lambda client: client.subscribe(channel, **options))
    assert isinstance(outcome, error)
    assert message in str(outcome)


def test_a_connection_subscribes_to_what_has_no_history_without_asking_for_it() -> None:
    assert on_a_socket(Hub(), lambda client: client.subscribe("room", history=0)) == Position(0, "")
