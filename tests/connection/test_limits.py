"""The limits of a connection, and those on connections, on real servers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from tests.apps.limited import MOST
from tests.clients import closed, connect, eventually, receive, reset
from tests.uvicorn_process import ROOT, Server, serve

APP = "tests.apps.limited:app"

#: The direct path, the adopted server, and the queued path.
both = pytest.mark.parametrize("name", ["hubbub run", "uvicorn", "uvicorn queued"])


async def welcome(url: str) -> ClientConnection:
    client = await connect(url)
    assert await receive(client) == "welcome"
    return client


async def refused(url: str) -> tuple[int, str | None, Any]:
    with pytest.raises(InvalidStatus) as caught:
        await connect(url)
    response = caught.value.response
    return response.status_code, response.headers.get("Retry-After"), bytes(response.body or b"")


async def has_connections(server: Server, hub: str, count: int) -> None:
    async def holds() -> bool:
        return bool((await server.get_json(f"/stats/{hub}"))["open"] == count)

    await eventually(holds)


@both
async def test_a_full_process_answers_503_until_a_client_leaves(name: str, log: Path) -> None:
    async with serve(APP, log, command=name, cwd=ROOT) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(f"{server.ws}/full")) for _ in range(MOST)]
        for client in clients:
            assert await receive(client) == "welcome"
        for _ in range(5):
            status, retry_after, body = await refused(f"{server.ws}/full")
            assert (status, retry_after) == (503, "5")
            assert b'{"detail":"This server has as many connections' in body
        # A socket that the application has accepted is closed: the client should try again later.
        async with connect(f"{server.ws}/accepted") as late:
            assert (await closed(late))[0] == 1013
        assert (await server.get_json("/stats/full"))["open"] == MOST
        # By a close frame, and without one.
        await clients[0].close()
        reset(clients[1])
        await has_connections(server, "full", MOST - 2)
        for _ in range(2):
            await stack.enter_async_context(await welcome(f"{server.ws}/full"))
        assert (await refused(f"{server.ws}/full"))[0] == 503
        stats = await server.get_json("/stats/full")
        assert (stats["connections"], stats["user_connections"]) == (7, 0)
    assert server.log.count("Refused a connection with 503") == 1
    assert "Traceback" not in server.log


@both
async def test_handlers_that_fail_release_their_slots(name: str, log: Path) -> None:
    async with serve(APP, log, command=name, cwd=ROOT) as server:
        for _ in range(MOST * 2):
            async with connect(f"{server.ws}/fails") as client:
                assert (await closed(client))[0] == 1011
        await has_connections(server, "full", 0)
        client = await welcome(f"{server.ws}/full")
        await client.close()


@both
async def test_clients_that_connect_at_once_do_not_pass_the_limit_together(name: str, log: Path) -> None:
    async with serve(APP, log, command=name, cwd=ROOT) as server:
        results = await asyncio.gather(
            *(welcome(f"{server.ws}/together") for _ in range(MOST * 3)), return_exceptions=True
        )
        welcomed = [each for each in results if isinstance(each, ClientConnection)]
        others = [each.response.status_code for each in results if isinstance(each, InvalidStatus)]
        assert (len(welcomed), others) == (MOST, [503] * MOST * 2)
        assert (await server.get_json("/stats/full"))["open"] == MOST
        await asyncio.gather(*(client.close() for client in welcomed))


@both
async def test_a_user_with_all_of_its_connections_gets_429(name: str, log: Path) -> None:
    async with serve(APP, log, command=name, cwd=ROOT) as server, AsyncExitStack() as stack:
        url = f"{server.ws}/fair?user=ann"
        clients = [await stack.enter_async_context(await welcome(url)) for _ in range(MOST)]
        status, _, body = await refused(url)
        assert status == 429
        assert b'{"detail":"This user has as many connections' in body
        for query in ("?user=bob", *[""] * (MOST + 1)):
            await stack.enter_async_context(await welcome(f"{server.ws}/fair{query}"))
        # The user is known after the first message.
        late = await stack.enter_async_context(await welcome(f"{server.ws}/fair"))
        await late.send("ann")
        assert await closed(late) == (1008, "This user has as many connections as one user may have.")
        # A connection that changes its user makes room for another.
        await clients[0].send("cid")
        assert await receive(clients[0]) == "now cid"
        await stack.enter_async_context(await welcome(url))
        assert (await refused(url))[0] == 429
        stats = await server.get_json("/stats/fair")
        assert (stats["user_connections"], stats["connections"]) == (3, 0)
    assert "Traceback" not in server.log


@pytest.mark.parametrize("path", ["full", "silent"])
@pytest.mark.parametrize("name", ["hubbub run", "uvicorn"])
async def test_too_large_messages_are_counted(name: str, path: str, log: Path) -> None:
    async with serve(APP, log, command=name, cwd=ROOT) as server:
        for count in (1, 2):
            client = await welcome(f"{server.ws}/{path}")
            await client.send("x" * 1001)
            assert (await closed(client))[0] == 1009
            assert (await server.get_json("/stats/full"))["message_size"] == count
        # A client that closes with this code has sent nothing too large.
        client = await welcome(f"{server.ws}/full")
        await client.close(1009)
        assert (await server.get_json("/stats/full"))["message_size"] == 2


async def test_too_large_messages_are_counted_on_the_queued_path(log: Path) -> None:
    async with serve(APP, log, command="uvicorn queued", cwd=ROOT) as server:
        client = await welcome(f"{server.ws}/full")
        await client.send("x" * 1000)
        assert await receive(client) == "1000"
        await client.send("x" * 1001)
        assert (await closed(client))[0] == 1009
        assert (await server.get_json("/stats/full"))["message_size"] == 1
