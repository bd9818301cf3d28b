"""Connections of pages of other hosts, and to other host names, are refused before they are accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.clients import closed, connect, receive
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
