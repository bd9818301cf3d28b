"""The demo's WebSocket endpoint, on a real server. Its page is tested in test_browser.py."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as Connect  # noqa: N812
from websockets.exceptions import InvalidStatus

from hubbub.demo import app as demo
from tests.clients import DEADLINE, connect, http_client, receive_json, reset
from tests.uvicorn_process import Server, free_port, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEMO = "hubbub.demo.app:app"

numbers = count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    log = tmp_path_factory.mktemp("demo") / "server.log"
    async with serve(DEMO, log) as server:
        yield server


@pytest.fixture
def room() -> str:
    """Return a room that no other test uses."""
    return f"room {next(numbers)}"


def come_in(
    server: Server, room: str, name: str, since: str | None = None, *, browser: str | None = None
) -> Connect:
    """Connect as a page does. By default each name has its own browser."""
    query = {"room": room, "name": name, "token": token(browser or name)}
    query |= {} if since is None else {"since": since}
    return connect(f"{server.ws}/chat?{urlencode(query)}")


def token(browser: str) -> str:
    return sha256(browser.encode()).hexdigest()[:32]


async def receive_data(client: ClientConnection) -> Any:
    """Receive the next message, without its envelope."""
    message = await receive_json(client)
    return message["data"] if message["type"] == "publication" else message


async def receive_until(client: ClientConnection, type_: str) -> Any:
    return await receive_one_of(client, type_)


async def receive_one_of(client: ClientConnection, *types: str) -> Any:
    while True:
        message = await receive_data(client)
        if message["type"] in types:
            return message


@asynccontextmanager
async def guest(server: Server, room: str, name: str) -> AsyncIterator[ClientConnection]:
    """Connect as a page that has received presence and all missed messages."""
    async with come_in(server, room, name) as client:
        assert name in users(await receive_until(client, "presence"))
        await receive_until(client, "ready")
        yield client


def users(message: Any) -> list[str]:
    return sorted(name_of(entry["user"]) for entry in message["entries"])


def name_of(user: str) -> str:
    name, _, tag = user.rpartition("#")
    assert re.fullmatch("[0-9a-f]{8}", tag)
    return name


async def receive_joins_or_leaves(client: ClientConnection, type_: str, count: int) -> list[str]:
    """Receive the names of the next ``count`` users that join, or leave."""
    names: list[str] = []
    while len(names) < count:
        names += users(await receive_until(client, type_))
    return sorted(names)


async def say(client: ClientConnection, text: str, id: str | None = None) -> str:  # noqa: A002
    id = id or f"{next(numbers):024x}"  # noqa: A001
    await client.send(json.dumps({"type": "say", "id": id, "text": text}))
    return id


# Presence


async def test_every_page_receives_the_presence_of_its_room(server: Server, room: str) -> None:
    async with come_in(server, room, "Ann") as ann:
        welcome, subscribed, presence, ready = [await receive_data(ann) for _ in range(4)]
        assert subscribed["id"].startswith("0:")
        assert "recovered" not in subscribed
        assert (presence["type"], users(presence)) == ("presence", ["Ann"])
        assert welcome.pop("process") != os.getpid()
        assert name_of(welcome.pop("user")) == "Ann"
        assert welcome == {"type": "welcome"}
        assert ready == {"type": "ready"}
        async with come_in(server, room, "Bob") as bob:
            assert users(await receive_until(bob, "presence")) == ["Ann", "Bob"]
            assert users(await receive_data(ann)) == ["Bob"]
        left = await receive_data(ann)
        assert (left["type"], users(left)) == ("leave", ["Bob"])


async def test_a_user_in_two_tabs_joins_once_and_leaves_once(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann:
        async with guest(server, room, "Bob") as first:
            assert (await receive_data(ann))["type"] == "join"
            async with guest(server, room, "Bob"):
                pass
            # A message about the second tab would come before this one.
            await say(first, "still here")
            assert (await receive_data(ann))["type"] == "said"
        assert (await receive_data(ann))["type"] == "leave"


async def test_rooms_are_separate(server: Server, room: str) -> None:
    async with come_in(server, room, "Ann") as ann, come_in(server, room + " b", "Bob") as bob:
        await say(ann, "for my room")
        assert (await receive_until(ann, "said"))["text"] == "for my room"
        await say(bob, "for the other")
        assert (await receive_until(bob, "said"))["text"] == "for the other"
        await say(ann, "again")
        assert (await receive_until(ann, "said"))["text"] == "again"


async def test_a_client_that_vanishes_leaves_once(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann:
        bob = await come_in(server, room, "Bob")
        assert users(await receive_data(ann)) == ["Bob"]
        reset(bob)
        assert await receive_joins_or_leaves(ann, "leave", 1) == ["Bob"]
        # Another message about Bob would come before this one.
        id_ = await say(ann, "gone?")
        assert (await receive_data(ann))["id"] == id_
    assert "Traceback" not in server.log


async def test_many_clients_that_vanish_at_once_leave_once_each(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann:
        names = [f"guest {n:02}" for n in range(20)]
        clients = await asyncio.gather(*(come_in(server, room, name) for name in names))
        assert await receive_joins_or_leaves(ann, "join", 20) == names
        for client in clients:
            reset(client)
        assert await receive_joins_or_leaves(ann, "leave", 20) == names


async def test_connections_are_closed_with_1012_when_the_server_stops(tmp_path: Path, room: str) -> None:
    async with serve(DEMO, tmp_path / "log") as server:
        async with guest(server, room, "Ann") as ann, guest(server, room, "Bob") as bob:
            assert await server.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(ann.wait_closed(), bob.wait_closed()), DEADLINE)
            assert ann.close_code == bob.close_code == 1012
        assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["localhost", "127.0.0.1", "[::1]"]),
        (["--host", "0.0.0.0"], ["localhost", "192.168.1.2", "[fe80::1]", socket.gethostname()]),
        (["--allow-host", "demo.example"], ["localhost", "demo.example"]),
    ],
)
async def test_the_demo_answers_only_to_its_own_host_names(
    tmp_path: Path, options: list[str], names: list[str]
) -> None:
    env = {"HUBBUB_URL": f"sqlite:///{tmp_path}/demo.db"}
    words = ("hubbub", "demo", "--port", "{port}", *options)
    async with serve("", tmp_path / "log", command=words, env=env) as server:
        query = urlencode({"room": "a", "name": "Ann", "token": token("Ann")})
        for name in names:
            async with connect(f"ws://{name}:8000/chat?{query}", host="127.0.0.1", port=server.port):
                pass
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://evil.example/chat?{query}", host="127.0.0.1", port=server.port)
        assert refused.value.response.status_code == 403
    assert (tmp_path / "demo.db").exists()


async def test_a_room_outlives_its_server(tmp_path: Path, room: str) -> None:
    port = free_port()
    env = {"HUBBUB_DEMO_URL": f"sqlite:///{tmp_path}/demo.db"}
    async with (
        serve(DEMO, tmp_path / "log", port=port, env=env) as server,
        guest(server, room, "Ann") as ann,
        guest(server, room, "Bob") as bob,
    ):
        await say(ann, "seen by Bob")
        seen = await receive_until(bob, "said")
        id_ = await say(ann, "not seen by him")
        while (await receive_until(ann, "accepted"))["id"] != id_:
            pass
        assert await server.stop(signal.SIGKILL) == -signal.SIGKILL
        await asyncio.wait_for(ann.wait_closed(), DEADLINE)
    async with serve(DEMO, tmp_path / "log", port=port, env=env) as server:
        async with come_in(server, room, "Cat") as cat:
            await receive_until(cat, "subscribed")
            first = await receive_json(cat)
            assert first["data"] == seen
        async with come_in(server, room, "Bob", first["id"]) as bob:
            assert (await receive_until(bob, "subscribed"))["recovered"] is True
            assert (await receive_until(bob, "said"))["text"] == "not seen by him"
            # Ann's lease ends a while after the server was killed.
            assert await receive_joins_or_leaves(bob, "leave", 1) == ["Ann"]


async def test_a_page_with_a_lost_position_is_told_so(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann:
        await say(ann, "hello")
        async with come_in(server, room, "Bob", "7:another-epoch") as bob:
            assert (await receive_until(bob, "subscribed"))["recovered"] is False
            # The page subscribes again, without a position.
        async with come_in(server, room, "Bob") as bob:
            assert (await receive_until(bob, "said"))["text"] == "hello"


# Messages


async def test_messages_reach_every_page_with_time_and_user(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann, guest(server, room, "Bob") as bob:
        id_ = await say(ann, "  hello, <b>Bob</b>\n")
        said = await receive_until(bob, "said")
        at = said.pop("at")
        assert at.endswith("Z")
        assert name_of(said.pop("user")) == "Ann"
        assert said == {"type": "said", "id": id_, "text": "hello, <b>Bob</b>"}
        assert (await receive_until(ann, "said"))["id"] == id_


async def test_a_new_page_receives_the_recent_messages(server: Server, room: str) -> None:
    for first in range(0, demo.RECENT + 5, demo.BURST):
        # The rate limit of a connection.
        last = min(first + demo.BURST, demo.RECENT + 5)
        async with come_in(server, room, "Ann") as ann:
            for n in range(first, last):
                await say(ann, f"message {n}")
            while (await receive_until(ann, "said"))["text"] != f"message {last - 1}":
                pass
    # They are kept although the room was empty meanwhile.
    async with come_in(server, room, "Bob") as bob:
        assert (await receive_until(bob, "subscribed"))["id"].startswith("5:")
        texts = [(await receive_until(bob, "said"))["text"] for _ in range(demo.RECENT)]
    assert texts == [f"message {n}" for n in range(5, demo.RECENT + 5)]


async def test_a_message_that_is_sent_again_is_published_once(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann, guest(server, room, "Bob") as bob:
        id_ = await say(ann, "once")
        for _ in range(2):
            assert (await receive_until(ann, "accepted"))["id"] == id_
            await say(ann, "once", id_)
        await say(ann, "then")
        assert [(await receive_until(bob, "said"))["text"] for _ in range(2)] == ["once", "then"]


async def test_typing_is_passed_on_to_the_others(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann, guest(server, room, "Bob") as bob:
        await ann.send('{"type": "typing"}')
        typing = await receive_until(bob, "is_typing")
        assert name_of(typing.pop("user")) == "Ann"
        assert typing == {"type": "is_typing"}
        await say(ann, "done")
        types = [(await receive_data(ann))["type"]]
        while types[-1] != "said":
            types.append((await receive_data(ann))["type"])
        assert "is_typing" not in types


async def test_too_many_messages_at_once_are_refused_and_the_connection_stays(
    server: Server, room: str
) -> None:
    async with guest(server, room, "Ann") as ann:
        # More than the rate limit allows while they are sent, even on a slow machine.
        ids = [await say(ann, f"message {n}") for n in range(300)]
        answers = [await receive_one_of(ann, "accepted", "too_fast") for _ in ids]
        assert [answer["id"] for answer in answers] == ids
        assert {answer["type"] for answer in answers[: demo.BURST]} == {"accepted"}
        refused = [answer for answer in answers if answer["type"] == "too_fast"]
        assert refused
        assert all(0 < answer["seconds"] <= 1 / demo.RATE for answer in refused)
        assert refused[-1]["message"] == "Too many messages at once. Please wait a moment."
        # After the given seconds, the same message is accepted.
        again = refused[-1]
        while again["type"] == "too_fast":
            await asyncio.sleep(again["seconds"])
            await say(ann, "once more", again["id"])
            again = await receive_one_of(ann, "accepted", "too_fast")
        assert again["id"] == refused[-1]["id"]


async def test_typing_too_often_is_not_passed_on(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann, guest(server, room, "Bob") as bob:
        for _ in range(300):
            await ann.send('{"type": "typing"}')
        await ann.send("the end")
        await receive_until(ann, "error")
        # This one is published after all of them.
        await bob.send('{"type": "typing"}')
        await receive_until(ann, "is_typing")
        await say(bob, "the end")
        passed_on = 0
        while (await receive_one_of(bob, "is_typing", "said"))["type"] == "is_typing":
            passed_on += 1
        assert demo.BURST <= passed_on < 300


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "hello",
        "null",
        "[]",
        "{}",
        '{"type": "shout", "text": "hello"}',
        '{"type": "say", "text": "hello"}',
        '{"type": "say", "id": "<script>", "text": "hello"}',
        '{"type": "say", "id": "0123456789abcdef", "text": "   "}',
        '{"type": "say", "id": "0123456789abcdef", "text": "\\ud800"}',
        '{"type": "say", "id": "0123456789abcdef", "text": ' + "[" * 5000,
        json.dumps({"type": "say", "id": "0123456789abcdef", "text": "x" * 2001}),
        b"\x00\xff",
    ],
)
async def test_invalid_messages_are_answered_and_the_connection_stays(
    server: Server, room: str, garbage: str | bytes
) -> None:
    async with guest(server, room, "Ann") as ann:
        await ann.send(garbage)
        error = await receive_data(ann)
        assert (error["type"], error["code"]) == ("error", 107)
        id_ = await say(ann, "still here")
        assert (await receive_data(ann))["id"] == id_
    assert "Traceback" not in server.log


# Names and rooms


@pytest.mark.parametrize(
    ("name", "room", "field", "explanation"),
    [
        ("", "lobby", "name", "at least 1 character"),
        ("   ", "lobby", "name", "at least 1 character"),
        ("n" * 25, "lobby", "name", "at most 24 characters"),
        ("\u200b", "lobby", "name", "at least 1 character"),
        ("\u3164 \u202e\x00", "lobby", "name", "at least 1 character"),
        ("\ufdfa" * 2, "lobby", "name", "at most 24 characters"),
        ("Ann #12345678", "lobby", "name", "should match pattern"),
        ("Ann\uff03", "lobby", "name", "should match pattern"),
        ("Ann", "", "room", "at least 1 character"),
        ("Ann", "r" * 41, "room", "at most 40 characters"),
        ("Ann", "\ufe0f", "room", "at least 1 character"),
    ],
)
async def test_refused_parameters_are_explained_over_http(
    server: Server, name: str, room: str, field: str, explanation: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with come_in(server, room, name):
            pass
    assert refused.value.response.status_code == 403
    async with http_client() as client:
        params = {"name": name, "room": room, "token": token(name)}
        response = await client.get(server.http + "/chat", params=params)
    assert response.status_code == 422
    [detail] = response.json()["detail"]
    assert detail["loc"] == ["query", field]
    assert explanation in detail["msg"]


@pytest.mark.parametrize("name", ["Ann", "Ánn Bée", "n" * 24, "👩", "<b>Ann</b>", "安"])
async def test_valid_names_are_accepted(server: Server, room: str, name: str) -> None:
    async with come_in(server, room, name) as client:
        assert name_of((await receive_until(client, "welcome"))["user"]) == name
    async with http_client() as client:
        params = {"name": name, "room": room, "token": token(name)}
        response = await client.get(server.http + "/chat", params=params)
    assert response.status_code == 204


@pytest.mark.parametrize(
    "name",
    [
        "  admin  ",
        "admin\u200b",
        "ad\u2060min",
        "ad\u034fmin",
        "\u202eadmin\u202c",
        "admin\u3164",
        "admin\ufe0f",
        "admin\U000e0041",
        "ad\x00min",
        "\uff41dmin",
    ],
)
async def test_names_that_look_alike_are_equal(server: Server, room: str, name: str) -> None:
    async with come_in(server, room, name) as client:
        assert name_of((await receive_until(client, "welcome"))["user"]) == "admin"


@pytest.mark.parametrize("name", ["Ann  Bee", "Ann\u00a0Bee", "Ann\nBee", "Ann \u200b Bee"])
async def test_spaces_that_look_alike_are_equal(server: Server, room: str, name: str) -> None:
    async with come_in(server, room, name) as client:
        assert name_of((await receive_until(client, "welcome"))["user"]) == "Ann Bee"


async def test_cleaning_is_idempotent() -> None:
    for char in map(chr, range(0x110000)):
        for text in (char, f"a{char}b", f"e{char}\u0301"):
            assert demo.clean(demo.clean(text)) == demo.clean(text)


async def test_two_browsers_with_the_same_name_are_two_users(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann, come_in(server, room, "Ann", browser="another") as other:
        theirs = (await receive_until(other, "welcome"))["user"]
        [joined] = (await receive_until(ann, "join"))["entries"]
        assert joined["user"] == theirs
        assert name_of(theirs) == "Ann"
        await say(other, "I am Ann")
        assert (await receive_until(ann, "said"))["user"] == theirs
        await say(ann, "No, I am")
        assert (await receive_until(ann, "said"))["user"] != theirs
    # Other pages do not receive the secret.
    assert token("another") not in theirs


async def test_pages_of_other_hosts_are_refused(server: Server) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(
            f"{server.ws}/chat?room=lobby&name=Ann&token={token('Ann')}", origin="https://elsewhere.example"
        ):
            pass
    assert refused.value.response.status_code == 403


# The page, the memory


async def test_the_page_shows_the_line_count_and_loads_no_other_resource(server: Server) -> None:
    async with http_client() as client:
        page = (await client.get(server.http)).text
    lines = len(inspect.getsource(demo).splitlines())
    assert f" {lines} lines of Python" in page
    for word in ("https://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", " src="):
        assert word not in page
