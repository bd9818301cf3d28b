"""Pages of other hosts are refused before they are accepted, with an answer that says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.clients import closed, connect, receive
from tests.servers import ROOT, serve


async def test_only_pages_of_this_host_and_of_allowed_ones_may_connect(server_name: str, log: Path) -> None:
    async with serve("tests.apps.origins:app", log, command=server_name, cwd=ROOT) as server:
        own = f"http://127.0.0.1:{server.port}"
        secure = f"https://127.0.0.1:{server.port}"  # as a page behind a proxy that ends TLS says
        for origin in [None, own, secure, "https://app.example.com", "http://localhost:5173"]:
            async with connect(f"{server.ws}/ws", origin=origin) as client:
                assert await receive(client) == "welcome"
        for origin in ["https://evil.example", "https://app.example.com.evil.example", "null", f"{own}0"]:
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{server.ws}/ws", origin=origin)
            assert refused.value.response.status_code == 403
        with pytest.raises(InvalidStatus):
            await connect(f"{server.ws}/ws", origin="https://evil\x85.example")
        # A socket that the application accepted by itself cannot be refused any more, but closed.
        async with connect(f"{server.ws}/accepted", origin="https://evil.example") as client:
            assert (await closed(client))[0] == 1008
    assert "Traceback" not in server.log
    assert "Refused a page from 'https://evil.example'" in server.log
    assert "evil\x85" not in server.log  # a line break to some readers of logs


@pytest.mark.parametrize("name", ["hubbub run", "hypercorn"])
async def test_the_answer_says_what_to_do(name: str, log: Path) -> None:
    async with serve("tests.apps.origins:app", log, command=name, cwd=ROOT) as server:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{server.ws}/ws", origin="https://evil.example")
        assert b"Hub(allow_origins=" in (refused.value.response.body or b"")
