"""The registry of declared channels: lookup by name, and errors for channels that are not declared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient

from hubbub import ChannelDeclaration, History, Hub, HubbubError, InvalidChannel, Position
from hubbub.channels import registry
from hubbub.channels.pattern import Pattern
from hubbub.channels.registry import Registry
from hubbub.core.publication import INTERNAL

KEPT = History(size=5)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The patterns with which names are compared, in this order."""
    texts: list[str] = []
    matches = Pattern.matches

    def counted(pattern: Pattern, name: str) -> bool:
        texts.append(pattern.text)
        return matches(pattern, name)

    monkeypatch.setattr(Pattern, "matches", counted)
    return texts


# Lookup


def test_a_name_is_compared_with_patterns_once(compared: list[str]) -> None:
    channels = Registry()
    room, plain = ChannelDeclaration("room:{id}"), ChannelDeclaration("plain")
    channels.add(room)
    channels.add(plain)
    for _ in range(3):
        assert channels.find("room:1") is room
        assert channels.find("room:1:2") is None
    assert compared == ["room:{id}", "room:{id}"]


def test_a_name_is_compared_with_patterns_that_begin_as_it_does(compared: list[str]) -> None:
    channels = Registry()
    for number in range(1000):
        channels.add(ChannelDeclaration(f"room{number:03}:{{id}}"))
    compared.clear()
    found = channels.find("room567:x")
    assert found is not None
    assert found.pattern == "room567:{id}"
    assert compared == ["room567:{id}"]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_of_patterns_that_match_the_most_specific_counts(is_reversed: bool) -> None:
    patterns = [
        "{all:path}",
        "{a}:{p:path}",
        "room:{p:path}",
        "{a}:{b}",
        "room:{id}",
        "room:v{id}",
        "room:v1",
    ]
    channels = Registry()
    for pattern in reversed(patterns) if is_reversed else patterns:
        if pattern != "{a}:{b}":  # Of this one and of room:{p:path}, neither is more specific.
            channels.add(ChannelDeclaration(pattern))
    for name, pattern in {
        "lobby": "{all:path}",
        "lobby:1": "{a}:{p:path}",
        "room:a:b": "room:{p:path}",
        "room:1": "room:{id}",
        "room:v2": "room:v{id}",
        "room:v1": "room:v1",
        "room:v12": "room:v{id}",
    }.items():
        found = channels.find(name)
        assert found is not None
        assert found.pattern == pattern


def test_channels_between_nodes_are_not_declared() -> None:
    channels = Registry()
    channels.add(ChannelDeclaration("{all:path}", history=KEPT))
    channels.add(ChannelDeclaration("{a}:{b}", history=KEPT))
    assert channels.find(f"{INTERNAL}control") is None
    assert channels.find(f"{INTERNAL}presence:room") is None


def test_a_declaration_counts_for_names_that_were_looked_up_before() -> None:
    channels = Registry()
    assert channels.find("room:1") is None
    room = ChannelDeclaration("room:{id}")
    channels.add(room)
    assert channels.find("room:1") is room


def test_names_from_clients_take_bounded_memory(monkeypatch: pytest.MonkeyPatch, compared: list[str]) -> None:
    monkeypatch.setattr(registry, "CACHED_NAMES", 10)
    channels = Registry()
    room = ChannelDeclaration("room:{id}")
    channels.add(room)
    for number in range(100):
        assert channels.find(f"room:{number}") is room
    # The names that were looked up last are remembered; those from before have made room for them.
    for number in range(99, -1, -1):
        assert channels.find(f"room:{number}") is room
    assert 100 + 90 <= len(compared) < 200


# Declaring


async def test_channels_are_declared_before_the_hub_starts() -> None:
    hub = Hub()
    room = hub.channel("room")
    async with hub:
        with pytest.raises(RuntimeError, match=r"'late' to be declared before the hub starts"):
            hub.channel("late", history=KEPT)
        await hub.publish("late", "x")
    hub.channel("late", history=KEPT)
    async with hub:
        await hub.publish("late", "x")
        assert [each.data for each in await hub.history("late")] == [b"x"]
        await hub.publish(room.pattern, "x")


async def test_a_hub_that_could_not_start_takes_declarations(tmp_path: Path) -> None:
    hub = Hub(f"sqlite:///{tmp_path / 'missing' / 'hub.db'}")
    with pytest.raises(HubbubError):
        await hub.__aenter__()
    hub.channel("room")


def test_a_channel_is_declared_once() -> None:
    hub = Hub()
    hub.channel("room:{id}")
    with pytest.raises(InvalidChannel, match="declared twice"):
        hub.channel("room:{id}")
    with pytest.raises(InvalidChannel, match=r"'room:{id}' and 'room:{number}' match the same names"):
        hub.channel("room:{number}")


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ("a:{x}:c", "a:b:{y}", "a:b:c"),
        ("room-{id}", "{kind}-5", "room-5"),
        ("{p:path}:b", "a:{y}", "a:b"),
        ("room:{p:path}", "{a}:{b}", "room:x"),
        ("{a}-1", "2-{b}", "2-1"),
    ],
)
def test_patterns_that_share_names_are_refused_if_neither_is_more_specific(
    one: str, other: str, name: str
) -> None:
    for first, second in ((one, other), (other, one)):
        hub = Hub()
        hub.channel(first)
        with pytest.raises(InvalidChannel) as caught:
            hub.channel(second)
        message = str(caught.value)
        assert f"{first!r} and {second!r} both match {name!r}" in message
        assert message.endswith("Change the literal text of one of them, so that no name matches both.")
        # The refused declaration has left no trace.
        hub.channel("unrelated")


def test_patterns_that_share_only_names_too_long_for_a_channel_are_declared() -> None:
    hub = Hub()
    hub.channel("a" * 200 + ":{x}")
    hub.channel("{x}:" + "b" * 200)


def test_a_thousand_patterns_are_compared_by_their_literal_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(pattern: Pattern, state: int, character: str) -> list[int]:
        raise AssertionError(f"{pattern} is compared character by character.")

    monkeypatch.setattr(Pattern, "_next", searched)
    for patterns in (
        "room:{n}",
        "room{n}:{{id}}",
        "{{tenant}}:room{n}:{{id}}",
        "{{tenant}}:room{n}:{{path:path}}",
        "{{path:path}}:room{n}:{{id}}",
        "room:{{id}}-{n:04}",
    ):
        channels = Registry()
        for number in range(100):
            channels.add(ChannelDeclaration(patterns.format(n=number)))


# Errors


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
async def test_a_missing_history_is_an_error_that_names_the_nearest_pattern(
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


async def test_the_limit_of_a_history_is_checked() -> None:
    hub = Hub()
    hub.channel("room", history=KEPT)
    async with hub:
        for limit, error in ((-1, ValueError), (True, TypeError), ("5", TypeError), (1.5, TypeError)):
            with pytest.raises(error, match="Expected limit"):
                await hub.history("room", limit=limit)  # type: ignore[arg-type]


def on_a_socket(hub: Hub, use: Callable[[Any], Awaitable[object]]) -> object:
    """Return the result of ``use(client)``, or the exception that it raises."""
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
def test_a_connection_cannot_ask_for_a_missing_history(
    channel: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    hub = Hub()
    hub.channel("room:{r}", history=KEPT)
    outcome = on_a_socket(hub, lambda client: client.subscribe(channel, **options))
    assert isinstance(outcome, error)
    assert message in str(outcome)


def test_a_connection_subscribes_without_a_history() -> None:
    assert on_a_socket(Hub(), lambda client: client.subscribe("room", history=0)) == Position(0, "")
