"""All doors of one channel, on real servers: dependencies, a pool of one session, a server that is killed."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import InvalidStatus

from tests.clients import DEADLINE, connect, http_client, receive_json
from tests.events import Event, Parser
from tests.uvicorn_process import ROOT, Server, free_port, serve

APP = "tests.apps.pooled:app"


def headers(scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer ann {scopes}", "Page": "test"}


READ, WRITE = headers("read"), headers("read+write")
CHANNEL = "/channels/room:5"


async def next_events(chunks: AsyncIterator[bytes], parser: Parser, count: int) -> list[Event]:
    """Return the next ``count`` events of a response."""
    found: list[Event] = []
    async with asyncio.timeout(DEADLINE):
        async for chunk in chunks:
            found += parser.feed(chunk)
            if len(found) >= count:
                break
    assert len(found) >= count
    return found


def said(text: str) -> dict[str, Any]:
    return {"user": "ann", "room": 5, "text": text, "page": "test"}


@pytest.mark.parametrize("command", ["uvicorn", "hubbub run"])
async def test_a_pool_of_one_session_serves_fifty_sockets_and_all_doors(command: str, tmp_path: Path) -> None:
    async with (
        serve(APP, tmp_path / "log", command=command, cwd=ROOT) as server,
        AsyncExitStack() as stack,
        http_client() as http,
    ):
        url = f"{server.ws}{CHANNEL}"
        for wrong in ({}, {"Page": "test"}, headers("write")):
            with pytest.raises(InvalidStatus) as refused:
                await stack.enter_async_context(connect(url, additional_headers=wrong))
            assert refused.value.response.status_code in (401, 403, 422)
        sockets = await asyncio.gather(
            *(stack.enter_async_context(connect(url, additional_headers=WRITE)) for _ in range(50))
        )
        async with http.stream("GET", f"{server.http}{CHANNEL}", headers=READ) as stream:
            assert stream.status_code == 200
            chunks, parser = stream.aiter_bytes(), Parser()
            await next_events(chunks, parser, 1)
            for number, socket in enumerate(sockets):
                await socket.send(json.dumps({"text": str(number)}))
            posted = await http.post(f"{server.http}{CHANNEL}", json={"text": "post"}, headers=WRITE)
            assert (posted.status_code, posted.json()["data"]) == (200, said("post"))
            expected = {*map(str, range(50)), "post"}
            for socket in sockets:
                got = [await receive_json(socket) for _ in expected]
                assert {each["text"] for each in got} == expected
            events = await next_events(chunks, parser, 51)
            assert {json.loads(each.data)["text"] for each in events} == expected
        refusal = await http.post(f"{server.http}{CHANNEL}", json={"text": "x"}, headers=READ)
        assert (refusal.status_code, refusal.json()) == (403, {"detail": "not enough permissions"})


async def test_both_doors_resume_after_a_server_was_killed(tmp_path: Path) -> None:
    port = free_port()
    options: dict[str, Any] = {
        "port": port,
        "cwd": ROOT,
        "env": {"HUBBUB_URL": f"sqlite:///{tmp_path / 'hub.db'}"},
    }

    async def publish(server: Server, http: httpx2.AsyncClient, text: str) -> None:
        answer = await http.post(f"{server.http}{CHANNEL}", json={"text": text}, headers=WRITE)
        assert answer.status_code == 200

    async with serve(APP, tmp_path / "first", **options) as server, http_client() as http:
        async with connect(f"{server.ws}{CHANNEL}?positions=1", additional_headers=READ) as socket:
            assert (await receive_json(socket))["type"] == "subscribed"
            await publish(server, http, "a")
            socket_id = (await receive_json(socket))["id"]
            async with http.stream("GET", f"{server.http}{CHANNEL}?history=1", headers=READ) as stream:
                events = await next_events(stream.aiter_bytes(), Parser(), 2)
                assert json.loads(events[1].data) == said("a")
                event_id = events[1].id
        await publish(server, http, "b")
        await server.stop(signal.SIGKILL)
    assert socket_id == event_id
    async with serve(APP, tmp_path / "second", **options) as server, http_client() as http:
        await publish(server, http, "c")
        async with connect(f"{server.ws}{CHANNEL}?since={socket_id}", additional_headers=READ) as socket:
            assert await receive_json(socket) == {"type": "subscribed", "id": socket_id, "recovered": True}
            for text in "bc":
                assert (await receive_json(socket))["data"] == said(text)
        resumed = READ | {"Last-Event-ID": str(event_id)}
        async with http.stream("GET", f"{server.http}{CHANNEL}", headers=resumed) as stream:
            opening, *events = await next_events(stream.aiter_bytes(), Parser(), 3)
            assert json.loads(opening.data)["recovered"] is True
            assert [json.loads(each.data) for each in events] == [said("b"), said("c")]
