"""The entrance of the doors on real servers: limits, cross-site rules, and their counters."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import InvalidStatus

from tests.apps.crossing import PAGE
from tests.apps.guarded import MOST, MOST_OF_USER
from tests.clients import connect, eventually, http_client, receive, receive_json
from tests.uvicorn_process import ROOT, Server, serve

both = pytest.mark.parametrize("name", ["hubbub run", "uvicorn"])


class Doors:
    """Clients of one server."""

    def __init__(self, server: Server, http: httpx2.AsyncClient) -> None:
        self.server = server
        self.http = http

    async def stats(self) -> Any:
        return (await self.http.get("/")).json()

    async def refused(self) -> Any:
        return (await self.stats())["refused"]

    async def is_open(self, count: int) -> None:
        async def holds() -> bool:
            return bool((await self.stats())["open"] == count)

        await eventually(holds)

    @asynccontextmanager
    async def socket(self, path: str, **headers: str) -> AsyncIterator[Any]:
        """Open a socket; yields its status, or the socket."""
        try:
            socket = await connect(f"{self.server.ws}{path}", additional_headers=headers)
        except InvalidStatus as exc:
            response = exc.response
            yield (
                response.status_code,
                response.headers.get("Retry-After"),
                json.loads(response.body or b""),
            )
            return
        async with socket:
            yield socket

    @asynccontextmanager
    async def stream(self, path: str, **headers: str) -> AsyncIterator[Any]:
        """Open an event stream; yields its status, or the response."""
        async with self.http.stream("GET", path, headers=headers) as response:
            if response.status_code == 200:
                yield response
            else:
                await response.aread()
                yield (response.status_code, response.headers.get("Retry-After"), response.json())


@asynccontextmanager
async def doors(name: str, log: Path) -> AsyncIterator[Doors]:
    async with (
        serve("tests.apps.guarded:app", log, command=name, cwd=ROOT) as server,
        http_client(base_url=server.http) as http,
    ):
        yield Doors(server, http)
        assert "Traceback" not in server.log


@both
async def test_the_connections_of_all_doors_share_the_limit_of_the_process(name: str, log: Path) -> None:
    async with doors(name, log) as at:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(at.socket("/channels/room:1"))
            await stack.enter_async_context(at.stream("/channels/room:1"))
            # It is a stream, although it names the snapshot.
            await stack.enter_async_context(at.stream("/channels/room:1?snapshot=false"))
            await stack.enter_async_context(at.socket("/own"))
            await at.is_open(MOST)
            before = (await at.stats())["calls"]
            for opening in (
                at.socket("/channels/room:1"),
                at.stream("/channels/room:1"),
                at.stream("/channels/room:1?snapshot=0"),
                at.stream("/channels/room:1?snapshot=nonsense"),
                at.socket("/own"),
            ):
                async with opening as (status, retry_after, body):
                    assert (status, retry_after) == (503, "5")
                    assert body["detail"].startswith("This server has as many connections as it can take")
            stats = await at.stats()
            # The application is not asked about clients for which there is no room.
            assert stats["calls"] == before
            assert stats["refused"] == {"connections": 5}
            # A snapshot alone opens no connection.
            answer = await at.http.get("/channels/state:1?snapshot=1")
            assert (answer.status_code, answer.json()["data"]) == (200, 7)
        await at.is_open(0)
        async with AsyncExitStack() as stack:
            for _ in range(MOST):
                await stack.enter_async_context(at.socket("/channels/room:1"))
            await at.is_open(MOST)


@both
async def test_a_client_that_is_refused_gives_its_slot_back(name: str, log: Path) -> None:
    async with doors(name, log) as at:
        paths = {
            "/channels/room:1?user=banned": (401, "unauthorized"),
            "/channels/nowhere": (404, "unknown_channel"),
            "/channels/room:1?history=x": (422, "bad_request"),
            "/channels/closed:1": (403, "forbidden"),
        }
        for path, (expected, _) in paths.items():
            for _ in range(MOST):
                for opening in (at.socket(path), at.stream(path)):
                    async with opening as (status, *_):
                        assert status == expected
        assert await at.refused() == {reason: 2 * MOST for _, reason in paths.values()}
        async with AsyncExitStack() as stack:
            for _ in range(MOST // 2):
                await stack.enter_async_context(at.socket("/channels/room:1"))
                await stack.enter_async_context(at.stream("/channels/room:1"))
            await at.is_open(MOST)


@both
async def test_a_user_has_its_limit_on_all_doors_together(name: str, log: Path) -> None:
    async with doors(name, log) as at, AsyncExitStack() as stack:
        assert MOST_OF_USER == 2
        await stack.enter_async_context(at.socket("/channels/room:1?user=ann"))
        await stack.enter_async_context(at.stream("/channels/room:1?user=ann"))
        for opening in (at.socket("/channels/room:1?user=ann"), at.stream("/channels/room:1?user=ann")):
            async with opening as (status, _, body):
                assert status == 429
                assert body == {"detail": "This user has as many connections as one user may have."}
        # Connections without a user are not counted for one.
        for query in ("", "?user=bob"):
            await stack.enter_async_context(at.socket(f"/channels/room:1{query}"))
        await at.is_open(MOST)
        assert await at.refused() == {"user_connections": 2}


@both
async def test_messages_beyond_the_rate_are_not_handled(name: str, log: Path) -> None:
    async with doors(name, log) as at, at.socket("/channels/room:1") as socket:
        for number in range(30):
            await socket.send(json.dumps(number))
            await socket.send(json.dumps({"type": "rpc", "id": number, "method": "double", "data": number}))
        await socket.send(json.dumps({"type": "refresh", "token": "x"}))
        handled: list[Any] = []
        errors: list[Any] = []
        refreshed = 0
        while len(handled) + len(errors) < 60 or not refreshed:
            message = await receive_json(socket)
            if message == {"type": "refreshed", "expires": None}:
                refreshed += 1
            else:
                is_error = isinstance(message, dict) and message["type"] == "error"
                (errors if is_error else handled).append(message)
        # One is free, and one comes back with each second.
        assert handled
        assert errors
        assert {error["code"] for error in errors} == {111}
        assert await at.refused() == {"message_rate": len(errors)}
        # An rpc's error says which one it was.
        ids = [error["id"] for error in errors if "id" in error]
        assert len(set(ids)) == len(ids) > 0


@both
async def test_own_endpoints_have_no_rate_of_messages(name: str, log: Path) -> None:
    async with doors(name, log) as at, at.socket("/own") as socket:
        for number in range(50):
            await socket.send(str(number))
        assert [await receive(socket) for _ in range(50)] == [str(number) for number in range(50)]


@both
async def test_the_limit_of_a_handler_is_that_of_the_user(name: str, log: Path) -> None:
    async with doors(name, log) as at, AsyncExitStack() as stack:
        first, second, other = [
            await stack.enter_async_context(at.socket(f"/channels/limited:{number}?user={user}"))
            for number, user in [(1, "ann"), (2, "ann"), (3, "bob")]
        ]
        for socket in (first, second, other):
            await socket.send("hello")
            assert await receive(socket) == "hello"
        await second.send("too many")

        # The rate of the connection comes first.
        async def codes() -> bool:
            return bool((await receive_json(second))["code"] == 111)

        assert await codes()


@both
async def test_the_doors_refuse_other_pages_other_sites_and_other_hosts(name: str, log: Path) -> None:
    async with doors(name, log) as at:
        wrong: list[tuple[dict[str, str], str]] = [
            ({"Origin": "https://evil.example"}, "origin"),
            ({"Sec-Fetch-Site": "cross-site"}, "cross_site"),
            ({"Sec-Fetch-Site": "same-site"}, "cross_site"),
        ]
        for headers, reason in wrong:
            before = (await at.refused()).get(reason, 0)
            for opening in (
                at.socket("/channels/room:1", **headers),
                at.stream("/channels/room:1", **headers),
            ):
                async with opening as (status, *_):
                    assert status == 403
            assert (await at.refused())[reason] == before + 2
        for path in ("/channels/room:1", "/channels/state:1?snapshot=1"):
            async with at.stream(path, **{"Sec-Fetch-Dest": "image"}) as (status, *_):
                assert status == 403
        async with at.stream("/channels/room:1", Host="evil.example") as (status, *_):
            assert status == 403
        refused = {"origin": 2, "cross_site": 6, "host": 1}
        assert await at.refused() == refused
        page = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "empty"}
        async with at.socket("/channels/room:1", **page) as socket, at.stream("/channels/room:1", **page):
            await socket.send("1")
            assert await receive(socket) == "1"
        assert await at.refused() == refused


@both
async def test_a_page_that_is_named_may_read_answers_and_refusals(name: str, log: Path) -> None:
    async with doors(name, log) as at:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        answer = await at.http.options("/channels/a/b", headers={"Origin": PAGE, **asked})
        assert answer.status_code == 204
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST"
        answer = await at.http.options("/channels/a/b", headers={"Origin": "https://evil.example", **asked})
        assert answer.status_code == 403
        assert await at.refused() == {"origin": 1}
        for path, status in (
            ("/channels/state:1?snapshot=1", 200),
            ("/channels/nowhere", 404),
            ("/channels/room:1?user=banned", 401),
            ("/channels/room:1?history=x", 422),
        ):
            answer = await at.http.get(path, headers={"Origin": PAGE})
            assert answer.status_code == status
            assert answer.headers.get_list("Access-Control-Allow-Origin") == [PAGE]
            assert answer.headers.get_list("Access-Control-Allow-Credentials") == ["true"]
            assert answer.headers.get_list("Vary") == ["Origin"]
        async with at.stream("/channels/room:1", Origin=PAGE) as response:
            assert response.headers["Access-Control-Allow-Origin"] == PAGE
        # The answer without these headers must not be kept for a page that may read it.
        answer = await at.http.get("/channels/nowhere")
        assert answer.headers.get_list("Vary") == ["Origin"]
        assert "Access-Control-Allow-Origin" not in answer.headers
