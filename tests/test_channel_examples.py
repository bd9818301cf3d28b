"""The examples with typed channels, each on a real server."""

from __future__ import annotations

import json
import sqlite3
from base64 import urlsafe_b64encode
from contextlib import closing
from pathlib import Path

import pytest
from playwright.async_api import expect
from websockets.exceptions import InvalidStatus

from tests.browser import chromium
from tests.clients import DEADLINE, connect, http_client, receive_json
from tests.uvicorn_process import ROOT, serve

expect.set_options(timeout=DEADLINE * 1000)

TOKEN = {"Authorization": "Bearer token-of-ann"}


def copy(name: str, folder: Path) -> Path:
    """Copy an example, so that its database is not written into the checkout."""
    (folder / name).write_text((ROOT / "examples" / name).read_text())
    return folder


async def test_rooms_store_each_message_before_it_is_published(log: Path, tmp_path: Path) -> None:
    cwd = copy("rooms.py", tmp_path)
    async with serve("rooms:app", log, cwd=cwd, probe="/docs") as server, http_client() as http:
        path = "/channels/room:1"
        async with (
            connect(f"{server.ws}{path}?token=token-of-ann&positions=1") as ann,
            connect(f"{server.ws}{path}?token=token-of-bob") as bob,
        ):
            opening = await receive_json(ann)
            assert opening["type"] == "subscribed"
            await bob.send('{"type":"say","text":"hi"}')
            said = {"type": "said", "user": "bob", "text": "hi"}
            assert await receive_json(bob) == said
            publication = await receive_json(ann)
            assert (publication["type"], publication["data"]) == ("publication", said)
            with closing(sqlite3.connect(tmp_path / "rooms.db")) as db:
                assert db.execute("SELECT room, user, text FROM messages").fetchall() == [(1, "bob", "hi")]
            await bob.send('{"type":"say","text":""}')
            error = await receive_json(bob)
            assert (error["type"], error["code"], error["errors"][0]["loc"]) == ("error", 107, ["text"])
            answer = await http.post(server.http + path, headers=TOKEN, json={"type": "say", "text": "yo"})
            assert answer.json()["data"] == await receive_json(bob)
            assert (await receive_json(ann))["id"] == answer.json()["id"]
        async with connect(f"{server.ws}{path}?token=token-of-ann&since={opening['id']}") as again:
            assert (await receive_json(again))["recovered"] is True
            assert [(await receive_json(again))["data"]["text"] for _ in range(2)] == ["hi", "yo"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/channels/room:1", 401),
        ("/channels/room:13?token=token-of-bob", 403),
        ("/channels/other:1?token=token-of-bob", 404),
        ("/channels/room:x?token=token-of-bob", 422),
        ("/channels/room:1?token=token-of-bob&since=x", 422),
    ],
)
async def test_rooms_refuse_with_the_same_status_on_each_door(
    log: Path, tmp_path: Path, path: str, status: int
) -> None:
    cwd = copy("rooms.py", tmp_path)
    async with serve("rooms:app", log, cwd=cwd, probe="/docs") as server, http_client() as http:
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.ws + path)
        assert refused.value.response.status_code == status
        assert (await http.get(server.http + path)).status_code == status


async def test_topics_have_several_messages_a_snapshot_and_an_rpc(log: Path) -> None:
    async with (
        serve("topics:app", log, probe="/docs") as server,
        http_client() as http,
        connect(f"{server.ws}/channels/topic:tea") as ann,
        connect(f"{server.ws}/channels/topic:tea") as bob,
    ):
        for client in (ann, bob):
            assert (await receive_json(client))["data"] == {"title": None}
        title = {"type": "rename", "title": "green tea"}
        for message in ({"type": "typing"}, title, title):
            await bob.send(json.dumps(message))
        # The sender does not get that it types; a title that is the same is not published.
        await bob.send('{"type":"rpc","id":1,"method":"topics.search","data":{"text":"green"}}')
        assert (await receive_json(bob))["data"] == title
        assert await receive_json(bob) == {"type": "reply", "id": 1, "data": ["tea"]}
        assert [(await receive_json(ann))["data"] for _ in range(2)] == [{"type": "typing"}, title]
        await bob.send('{"type":"rpc","id":"a","method":"topics.count"}')
        error = await receive_json(bob)
        assert (error["id"], error["code"]) == ("a", 104)
        state = await http.get(f"{server.http}/channels/topic:tea?snapshot=1")
        assert state.json()["data"] == {"title": "green tea"}
        answer = await http.post(f"{server.http}/channels/topic:rules", json={"type": "rename", "title": "x"})
        assert (answer.status_code, answer.json()) == (403, {"detail": "the rules keep their title"})
        same = await http.post(f"{server.http}/channels/topic:tea", json=title)
        assert same.status_code == 204


async def test_tokens_are_renewed_while_the_socket_stays_open(log: Path) -> None:
    env = {"CHAT_SECRET": "0123456789abcdef" * 4, "CHAT_TOKEN_SECONDS": "20"}
    async with serve("tokens:app", log, env=env) as server, http_client(base_url=server.http) as http:
        assert (await http.post("/login", json={"name": "ann", "password": "no"})).status_code == 401
        token = (await http.post("/login", json={"name": "ann", "password": "teapot"})).json()
        secret = "hubbub.token." + urlsafe_b64encode(token.encode()).decode().rstrip("=")
        url = f"{server.ws}/channels/room:1"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url)
        assert refused.value.response.status_code == 401
        async with connect(url, subprotocols=["hubbub", secret]) as client:
            assert client.subprotocol == "hubbub"
            assert (await receive_json(client))["type"] == "expiring"
            renewed = await http.post("/renew", headers={"Authorization": f"Bearer {token}"})
            await client.send(json.dumps({"type": "refresh", "token": renewed.json()}))
            assert (await receive_json(client))["type"] == "refreshed"


async def test_the_page_of_tokens_logs_in_and_talks(log: Path) -> None:
    env = {"CHAT_SECRET": "0123456789abcdef" * 4}
    async with serve("tokens:app", log, env=env) as server, chromium() as browser:
        page = await browser.new_page()
        await page.goto(server.http)
        await page.get_by_label("Name").fill("ann")
        await page.get_by_label("Password").fill("teapot")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_have_text("Connected.")
        await page.get_by_label("Message").fill("<b>hi</b>")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("listitem")).to_have_text(["ann: <b>hi</b>"])
    assert "hubbub.token." not in server.log
