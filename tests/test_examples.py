"""The example programs, each on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from websockets.exceptions import InvalidStatus

from tests.clients import connect, http_client, receive
from tests.uvicorn_process import Server, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = ("echo", "items", "manager", "chat")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Server]]:
    logs = tmp_path_factory.mktemp("examples")
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        started = {
            name: group.create_task(
                stack.enter_async_context(serve(f"{name}:app", logs / f"{name}.log", command="hubbub run"))
            )
            for name in EXAMPLES
        }
        yield {name: await task for name, task in started.items()}


@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_page_is_served_and_needs_nothing_else(servers: dict[str, Server], name: str) -> None:
    async with http_client() as client:
        response = await client.get(servers[name].http)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    for word in ("https://", "http://", "innerHTML", " src="):
        assert word not in response.text


@pytest.mark.parametrize("name", EXAMPLES)
async def test_a_client_that_disconnects_causes_no_error(servers: dict[str, Server], name: str) -> None:
    path = {"echo": "/ws", "items": "/items/lamp/ws?token=t"}.get(name, "/ws/77")
    async with connect(servers[name].ws + path) as client:
        await client.send("hello")
        await receive(client)
    async with connect(servers[name].ws + path):
        pass
    assert "Traceback" not in servers[name].log


async def test_echo(servers: dict[str, Server]) -> None:
    async with connect(servers["echo"].ws + "/ws") as client:
        for text in ("hello", "", "ünïcödé"):
            await client.send(text)
            assert await receive(client) == f"The server heard: {text}"


@pytest.mark.parametrize(
    ("query", "cookie", "answer"),
    [
        ("?token=abc", None, "About lamp, asked with the token abc: how big?"),
        ("", "session=xyz", "About lamp, asked with the cookie xyz: how big?"),
        ("?amount=3&token=abc", None, "About 3 x lamp, asked with the token abc: how big?"),
    ],
)
async def test_items(servers: dict[str, Server], query: str, cookie: str | None, answer: str) -> None:
    headers = {"Cookie": cookie} if cookie else {}
    url = f"{servers['items'].ws}/items/lamp/ws{query}"
    async with connect(url, additional_headers=headers) as client:
        await client.send("how big?")
        assert await receive(client) == answer


@pytest.mark.parametrize("query", ["", "?amount=3", "?token=", "?amount=many&token=abc"])
async def test_items_refuses_clients_without_a_token_and_wrong_amounts(
    servers: dict[str, Server], query: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{servers['items'].ws}/items/lamp/ws{query}"):
            pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("name", ["manager", "chat"])
async def test_chat_with_and_without_the_hub(servers: dict[str, Server], name: str) -> None:
    url = servers[name].ws
    async with connect(url + "/ws/2") as two:
        # A client that has received something is in the chat.
        await two.send("first")
        assert {await receive(two), await receive(two)} == {"You wrote: first", "Client #2 says: first"}
        async with connect(url + "/ws/1") as one:
            await one.send("hello")
            assert {await receive(one), await receive(one)} == {"You wrote: hello", "Client #1 says: hello"}
            assert await receive(two) == "Client #1 says: hello"
        assert await receive(two) == "Client #1 left the chat"


async def test_chat_refuses_a_client_id_that_is_not_a_number(servers: dict[str, Server]) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(servers["chat"].ws + "/ws/seven"):
            pass
    assert refused.value.response.status_code == 403
