"""Connections of pages of other hosts, and to other host names, are refused before they are accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus

from hubbub.security.admission import refusal
from tests.apps.crossing import PAGE, application
from tests.clients import closed, connect, http_client, receive
from tests.uvicorn_process import ROOT, serve


async def test_only_pages_of_this_host_and_of_allowed_ones_may_connect(server_name: str, log: Path) -> None:
    async with serve("tests.apps.origins:app", log, command=server_name, cwd=ROOT) as server:
        own = f"http://127.0.0.1:{server.port}"
        secure = f"https://127.0.0.1:{server.port}"  # as a page behind a proxy that ends TLS says
        for origin in [None, own, secure, "https://app.example.com", "http://localhost:5173"]:
            async with connect(f"{server.ws}/ws", origin=origin) as client:
                assert await receive(client) == "welcome"
        for origin in ["https://evil.example", "https://app.example.com.evil.example", "null", f"{own}0"]:
            assert await refused(f"{server.ws}/ws", origin=origin) == 403
        with pytest.raises(InvalidStatus):
            await connect(f"{server.ws}/ws", origin="https://evil\x85.example")
        # A socket that the application accepted by itself cannot be refused any more, but closed.
        async with connect(f"{server.ws}/accepted", origin="https://evil.example") as client:
            assert (await closed(client))[0] == 1008
    assert "Traceback" not in server.log
    assert "Refused a page from 'https://evil.example'" in server.log
    assert "evil\x85" not in server.log  # a line break to some readers of logs


async def refused(url: str, **options: object) -> int:
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, **options)
    return caught.value.response.status_code


@pytest.mark.parametrize("name", ["hubbub run", "hypercorn"])
async def test_the_answer_names_the_parameter(name: str, log: Path) -> None:
    async with serve("tests.apps.origins:app", log, command=name, cwd=ROOT) as server:
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"{server.ws}/ws", origin="https://evil.example")
        assert b"Hub(allow_origins=" in (caught.value.response.body or b"")
        with pytest.raises(InvalidStatus) as caught:
            await connect("ws://evil.example/named", host="127.0.0.1", port=server.port)
        assert b"Hub(hosts=" in (caught.value.response.body or b"")


@pytest.mark.parametrize("name", ["hubbub run", "uvicorn --ws", "uvicorn"])
async def test_many_refusals_are_one_line_of_the_log_which_names_the_proxy(name: str, log: Path) -> None:
    async with serve("tests.apps.origins:app", log, command=name, cwd=ROOT) as server:
        before = server.log
        for _ in range(20):
            # nginx sends this by default: the page's own server, but not by its name.
            assert await refused(f"{server.ws}/ws", origin="https://shop.example") == 403
        added = server.log.removeprefix(before).splitlines()
    (line,) = [line for line in added if "127.0.0.1" in line or "WARNING" in line or "Refused" in line]
    assert "Refused a page from 'https://shop.example' with 403" in line
    assert f"Host is '127.0.0.1:{server.port}'" in line
    assert "proxy_set_header Host $http_host" in line
    assert "allow_origins" in line


async def test_only_names_of_this_server_may_be_connected_to(server_name: str, log: Path) -> None:
    async with serve("tests.apps.origins:app", log, command=server_name, cwd=ROOT) as server:
        to_the_server: dict[str, object] = {"host": "127.0.0.1", "port": server.port}
        for host in ["localhost", "LOCALHOST:8000", "www.example.com:443", "127.0.0.1", "[::1]:8000"]:
            async with connect(f"ws://{host}/named", **to_the_server) as client:
                assert await receive(client) == "welcome"
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1"]:
            # As after DNS rebinding: for the browser, page and server are the same.
            assert await refused(f"ws://{host}/named", origin=f"http://{host}", **to_the_server) == 403
    assert "Traceback" not in server.log
    assert server.log.count("Refused a connection with 403: its Host is 'evil.example'") == 1
    assert server.log.count("Refused a connection") == 1


# The doors: headers by which a browser says how a page has made it send a request

CROSSING = "tests.apps.crossing:plain"


@pytest.mark.parametrize("name", ["hubbub run", "uvicorn"])
async def test_the_doors_refuse_requests_of_other_sites_that_name_none(name: str, log: Path) -> None:
    async with (
        serve(CROSSING, log, command=name, cwd=ROOT) as server,
        http_client(base_url=server.http) as http,
    ):
        own = server.http

        async def statuses(origin: str | None, **metadata: str) -> tuple[int, int, int]:
            """Of a WebSocket, a GET and a POST."""
            headers = {f"Sec-Fetch-{name}": value for name, value in metadata.items()}
            try:
                async with connect(f"{server.ws}/channels/a", origin=origin, additional_headers=headers):
                    opened = 101
            except InvalidStatus as exc:
                opened = exc.response.status_code
            if origin is not None:
                headers["Origin"] = origin
            got = await http.get("/channels/a", headers=headers)
            posted = await http.post("/channels/a", headers=headers)
            return opened, got.status_code, posted.status_code

        # Programs; the page's own scripts; those of a page that is named.
        assert await statuses(None) == (101, 200, 200)
        assert await statuses(None, Site="same-origin", Dest="empty") == (101, 200, 200)
        assert await statuses(own, Site="same-origin", Dest="empty") == (101, 200, 200)
        for site in ("cross-site", "same-site"):
            assert await statuses("https://app.example.com", Site=site, Dest="empty") == (101, 200, 200)
        assert (await http.get("/")).json() == {}
        # Another page, with and without its name.
        for site in ("cross-site", "same-site", "Cross-Site"):
            assert await statuses(None, Site=site, Dest="empty") == (403, 403, 403)
            assert await statuses("https://evil.example", Site=site, Dest="empty") == (403, 403, 403)
        assert (await http.get("/")).json() == {"cross_site": 9, "origin": 9}
        # An image, a link, a frame: only a script may open a stream, also one of the same site.
        for dest in ("image", "document", "iframe", "script", "", "x" * 500):
            assert await statuses(None, Site="same-origin", Dest=dest) == (101, 403, 200)
            assert await statuses(own, Site="same-origin", Dest=dest) == (101, 403, 200)
        assert (await http.get("/")).json() == {"cross_site": 21, "origin": 9}
        answer = await http.get("/channels/a", headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.json() == {
            "detail": "This request is refused: it comes from another site (cross-site) without an Origin."
        }
    assert "Traceback" not in server.log
    assert server.log.count("Refused a request with 403") == 1


@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        (None, False),
        ("https://app.example.com", True),
        ("http://testserver", True),
    ],
)
def test_a_door_can_ask_for_an_origin(origin: str | None, passes: bool) -> None:
    with TestClient(application(PAGE)) as client:
        headers = {} if origin is None else {"Origin": origin}
        assert client.post("/channels/a", headers=headers).json() is passes


async def test_own_endpoints_know_no_sites(log: Path) -> None:
    async with serve("tests.apps.origins:app", log, cwd=ROOT) as server:
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"}
        async with connect(f"{server.ws}/ws", additional_headers=headers) as client:
            assert await receive(client) == "welcome"
        assert await refused(f"{server.ws}/ws", origin="https://evil.example") == 403
        stats = await server.get_json("/stats")
        assert {reason: count for reason, count in stats.items() if count} == {"origin": 1}


def test_a_socket_without_a_status_is_closed_with_a_code() -> None:
    socket: dict[str, object] = {"type": "websocket", "headers": []}
    answerable = {**socket, "extensions": {"websocket.http.response": {}}}
    http: dict[str, object] = {"type": "http", "headers": []}
    full, forbidden = HTTPException(503, "x" * 200), HTTPException(403, "no")
    for scope in (http, answerable):
        assert refusal(HTTPConnection(scope), full) is full
    closing = refusal(HTTPConnection(socket), full)
    assert isinstance(closing, WebSocketException)
    assert (closing.code, closing.reason) == (1013, "x" * 123)
    closing = refusal(HTTPConnection(socket), forbidden)
    assert isinstance(closing, WebSocketException)
    assert (closing.code, closing.reason) == (1008, "no")
