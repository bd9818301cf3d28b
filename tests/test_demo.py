"""The demo's protocol, on a real server. Its page is tested in test_browser.py."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from tests.clients import DEADLINE, connect, http_client, receive, receive_json, reset
from tests.servers import Server, free_port, serve

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
    """A room of the test's own."""
    return f"room {next(numbers)}"


def come_in(server: Server, room: str, name: str, since: str | None = None) -> Connect:
    query = {"room": room, "name": name} | ({} if since is None else {"since": since})
    return connect(f"{server.ws}/chat?{urlencode(query)}")


async def hear(client: ClientConnection) -> Any:
    """The next message, out of its envelope."""
    message = await receive_json(client)
    return message["data"] if message["type"] == "publication" else message


async def receive_until(client: ClientConnection, type_: str) -> Any:
    while True:
        message = await hear(client)
        if message["type"] == type_:
            return message


@asynccontextmanager
async def guest(server: Server, room: str, name: str) -> AsyncIterator[ClientConnection]:
    """Someone who has been told who is here, and welcomed."""
    async with come_in(server, room, name) as client:
        assert name in users(await receive_until(client, "presence"))
        await receive_until(client, "welcome")
        yield client


def users(message: Any) -> list[str]:
    return sorted(member["user"] for member in message["entries"])


async def receive_coming_and_going(client: ClientConnection, type_: str, count: int) -> list[str]:
    """The next ``count`` who come, or leave."""
    names: list[str] = []
    while len(names) < count:
        names += users(await receive_until(client, type_))
    return sorted(names)


async def say(client: ClientConnection, text: str, id: str | None = None) -> str:  # noqa: A002
    id = id or f"{next(numbers):024x}"  # noqa: A001
    await client.send(json.dumps({"type": "say", "id": id, "text": text}))
    return id


# Coming and going


async def test_everyone_is_told_who_is_here(server: Server, room: str) -> None:
    async with come_in(server, room, "Ann") as ann:
        subscribed, presence, welcome = [await hear(ann) for _ in range(3)]
        assert subscribed["id"].startswith("0:")
        assert "recovered" not in subscribed
        assert (presence["type"], users(presence)) == ("presence", ["Ann"])
        assert welcome.pop("process") != os.getpid()
        assert welcome == {"type": "welcome", "name": "Ann"}
        async with come_in(server, room, "Bob") as bob:
            assert users(await receive_until(bob, "presence")) == ["Ann", "Bob"]
            assert users(await hear(ann)) == ["Bob"]
        left = await hear(ann)
        assert (left["type"], users(left)) == ("leave", ["Bob"])


async def test_a_person_in_two_tabs_comes_once_and_leaves_once(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann:
        async with guest(server, room, "Bob") as first:
            assert (await hear(ann))["type"] == "join"
            async with guest(server, room, "Bob"):
                pass
            # Whatever there might be about the second tab would be in front of this.
            await say(first, "still here")
            assert (await hear(ann))["type"] == "said"
        assert (await hear(ann))["type"] == "leave"


async def test_rooms_are_separate(server: Server, room: str) -> None:
    async with come_in(server, room, "Ann") as ann, come_in(server, room + " b", "Bob") as bob:
        await say(ann, "for my room")
        assert (await receive_until(ann, "said"))["text"] == "for my room"
        await say(bob, "for the other")
        assert (await receive_until(bob, "said"))["text"] == "for the other"
        await say(ann, "again")
        assert (await receive_until(ann, "said"))["text"] == "again"


async def test_vanishing_is_announced_once(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann:
        bob = await come_in(server, room, "Bob")
        assert users(await hear(ann)) == ["Bob"]
        reset(bob)
        assert await receive_coming_and_going(ann, "leave", 1) == ["Bob"]
        # Whatever else there might be about Bob would be in front of this.
        id_ = await say(ann, "gone?")
        assert (await hear(ann))["id"] == id_
    assert "Traceback" not in server.log


async def test_many_that_vanish_at_once_are_each_announced_once(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann:
        names = [f"guest {n:02}" for n in range(20)]
        clients = await asyncio.gather(*(come_in(server, room, name) for name in names))
        assert await receive_coming_and_going(ann, "join", 20) == names
        for client in clients:
            reset(client)
        assert await receive_coming_and_going(ann, "leave", 20) == names


async def test_everyone_is_told_to_come_back_when_the_server_stops(tmp_path: Path, room: str) -> None:
    async with serve(DEMO, tmp_path / "log") as server:
        async with guest(server, room, "Ann") as ann, guest(server, room, "Bob") as bob:
            assert await server.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(ann.wait_closed(), bob.wait_closed()), DEADLINE)
            assert ann.close_code == bob.close_code == 1012
        assert "Traceback" not in server.log


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
            assert (await hear(bob))["recovered"] is True
            assert (await receive_until(bob, "said"))["text"] == "not seen by him"
            # Ann is not here any more. It takes a while until that is certain.
            assert await receive_coming_and_going(bob, "leave", 1) == ["Ann"]


async def test_who_comes_back_too_late_is_told(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann:
        await say(ann, "hello")
        async with come_in(server, room, "Bob", "7:another-epoch") as bob:
            assert (await hear(bob))["recovered"] is False
            # The page comes again, as a new one.
        async with come_in(server, room, "Bob") as bob:
            assert (await receive_until(bob, "said"))["text"] == "hello"


# Messages


async def test_what_is_said_reaches_everyone_with_time_and_sender(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann, guest(server, room, "Bob") as bob:
        id_ = await say(ann, "  hello, <b>Bob</b>\n")
        said = await receive_until(bob, "said")
        at = said.pop("at")
        assert at.endswith("Z")
        assert said == {"type": "said", "id": id_, "name": "Ann", "text": "hello, <b>Bob</b>"}
        assert (await receive_until(ann, "said"))["id"] == id_


async def test_who_comes_later_gets_the_last_messages(server: Server, room: str) -> None:
    async with come_in(server, room, "Ann") as ann:
        for n in range(demo.RECENT + 5):
            await say(ann, f"message {n}")
        while (await receive_until(ann, "said"))["text"] != f"message {demo.RECENT + 4}":
            pass
    # Also when the room was empty in between.
    async with come_in(server, room, "Bob") as bob:
        assert (await hear(bob))["id"].startswith("5:")
        texts = [(await receive_until(bob, "said"))["text"] for _ in range(demo.RECENT)]
    assert texts == [f"message {n}" for n in range(5, demo.RECENT + 5)]


async def test_what_is_sent_again_is_said_once(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann, guest(server, room, "Bob") as bob:
        id_ = await say(ann, "once")
        for _ in range(2):
            assert (await receive_until(ann, "accepted"))["id"] == id_
            await say(ann, "once", id_)
        await say(ann, "then")
        assert [(await receive_until(bob, "said"))["text"] for _ in range(2)] == ["once", "then"]


async def test_typing_is_told_to_the_others(server: Server, room: str) -> None:
    async with guest(server, room, "Ann") as ann, guest(server, room, "Bob") as bob:
        await ann.send('{"type": "typing"}')
        assert await receive_until(bob, "is_typing") == {"type": "is_typing", "name": "Ann"}
        await say(ann, "done")
        types = [(await hear(ann))["type"]]
        while types[-1] != "said":
            types.append((await hear(ann))["type"])
        assert "is_typing" not in types


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
async def test_garbage_is_answered_and_the_socket_stays(
    server: Server, room: str, garbage: str | bytes
) -> None:
    async with guest(server, room, "Ann") as ann:
        await ann.send(garbage)
        error = await hear(ann)
        assert (error["type"], error["code"]) == ("error", 107)
        id_ = await say(ann, "still here")
        assert (await hear(ann))["id"] == id_
    assert "Traceback" not in server.log


# The door


@pytest.mark.parametrize(
    ("name", "room", "field", "explanation"),
    [
        ("", "lobby", "name", "at least 1 character"),
        ("   ", "lobby", "name", "at least 1 character"),
        ("n" * 25, "lobby", "name", "at most 24 characters"),
        ("An\nn", "lobby", "name", "Only characters that can be seen"),
        ("\u200b", "lobby", "name", "Only characters that can be seen"),
        ("\u202enn\u202c", "lobby", "name", "Only characters that can be seen"),
        ("Ann", "", "room", "at least 1 character"),
        ("Ann", "r" * 41, "room", "at most 40 characters"),
        ("Ann", "lob\x00by", "room", "Only characters that can be seen"),
    ],
)
async def test_what_is_refused_is_explained_over_http(
    server: Server, name: str, room: str, field: str, explanation: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with come_in(server, room, name):
            pass
    assert refused.value.response.status_code == 403
    async with http_client() as client:
        response = await client.get(server.http + "/chat", params={"name": name, "room": room})
    assert response.status_code == 422
    [detail] = response.json()["detail"]
    assert detail["loc"] == ["query", field]
    assert explanation in detail["msg"]


@pytest.mark.parametrize("name", ["Ann", "Ánn Bée", "  Ann  ", "n" * 24, "👩‍💻", "<b>Ann</b>", "安"])
async def test_names_that_may_come_in(server: Server, room: str, name: str) -> None:
    async with come_in(server, room, name) as client:
        assert (await receive_until(client, "welcome"))["name"] == name.strip()
    async with http_client() as client:
        response = await client.get(server.http + "/chat", params={"name": name, "room": room})
    assert response.status_code == 204


async def test_pages_of_other_hosts_may_not_come_in(server: Server) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{server.ws}/chat?room=lobby&name=Ann", origin="https://elsewhere.example"):
            pass
    assert refused.value.response.status_code == 403


# The page, the examples, the memory


async def test_the_page_counts_its_own_lines_and_needs_nothing_else(server: Server) -> None:
    async with http_client() as client:
        page = (await client.get(server.http)).text
    lines = len(inspect.getsource(demo).splitlines())
    assert f" {lines} lines of Python" in page
    for word in ("https://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", " src="):
        assert word not in page


@pytest.mark.parametrize("name", ["echo", "items", "manager", "chat"])
async def test_the_examples_are_mounted(server: Server, name: str) -> None:
    async with http_client(follow_redirects=True) as client:
        response = await client.get(f"{server.http}/examples/{name}")
    assert response.status_code == 200
    assert response.url.path == f"/examples/{name}/"
    assert "<!doctype html>" in response.text


async def test_the_hub_of_the_mounted_chat_runs(server: Server) -> None:
    async with connect(f"{server.ws}/examples/chat/ws/7") as client:
        await client.send("hello")
        assert {await receive(client), await receive(client)} == {"You wrote: hello", "Client #7 says: hello"}
