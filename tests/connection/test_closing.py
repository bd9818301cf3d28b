"""Every end of a block closes the socket with a code and a reason, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.clients import closed, connect, connect_deaf, eventually, receive, receive_json, reset
from tests.uvicorn_process import ROOT, SERVERS, Server, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVERS)
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    async with serve(
        "tests.apps.endings:app", log, command=request.param, cwd=ROOT, probe="/remains"
    ) as server:
        yield server


async def nothing_remains(server: Server) -> None:
    async def nothing_is_alive() -> bool:
        return not (await server.get_json("/remains"))["alive"]

    await eventually(nothing_is_alive)
    now = await server.get_json("/remains")
    assert (now["connections"], now["subscriptions"], now["channels"], now["backlog"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [
        ("return", 1000, ""),
        ("break", 1000, ""),
        ("close", 4001, "é" * 61),
        ("exception", 1011, "internal error"),
        ("websocket-exception", 4401, "why"),
        ("long-reason", 4401, "x" * 123),
        ("bad-code", 1011, "no such thing"),
        ("http-403", 1008, "not your room"),
        ("http-503", 1011, "later"),
        ("kicked", 4003, "kicked: spam"),
        ("handled", 4404, "handled"),
        ("handled-for-http", 1011, "internal error"),
        ("text-expected", 1003, "Expected a text frame, but got a binary frame of 3 bytes."),
        ("cancelled", 1001, "cancelled"),
        ("closed-by-another", 4002, "enough"),
        ("twice", 1011, "internal error"),
    ],
)
async def test_the_close_frame_says_how_the_block_ended(
    server: Server, how: str, code: int, reason: str
) -> None:
    async with connect(f"{server.ws}/ends/{how}") as client:
        assert await receive(client) == "ready"
        await client.send("go")
        if how == "break":
            await client.send("text")
        if how == "text-expected":
            await client.send(b"\x00\x01\x02")
        assert await closed(client) == (code, reason)
    await nothing_remains(server)


@pytest.mark.parametrize(
    ("how", "message", "code"),
    [
        ("bytes-expected", "text", 1003),
        ("json-expected", "{nonsense", 1007),
        ("json-expected", "[" * 900, 1007),
        ("json-expected", b"\xff\xfe", 1007),
        ("message-expected", '{"x": "many"}', 1007),
        ("text-expected", "x" * 1001, 1009),
        ("text-expected", "é" * 501, 1009),
        ("bytes-expected", b"x" * 1001, 1009),
    ],
)
async def test_a_wrong_message_closes_with_the_code_for_it(
    server: Server, how: str, message: str | bytes, code: int
) -> None:
    async with connect(f"{server.ws}/ends/{how}") as client:
        await client.send("go")
        await client.send(message)
        assert (await closed(client))[0] == code
    await nothing_remains(server)


async def test_a_message_of_just_the_allowed_size_is_taken(server: Server) -> None:
    async with connect(f"{server.ws}/kinds/text") as client:
        await client.send("é" * 500)
        assert await receive(client) == "é" * 500


@pytest.mark.parametrize("how", ["close frame", "reset"])
@pytest.mark.parametrize("endpoint", ["break", "group", "text-expected"])
async def test_a_client_that_leaves_ends_the_block_without_an_error(
    server: Server, endpoint: str, how: str
) -> None:
    errors = server.log.count("Traceback")
    async with connect(f"{server.ws}/log") as log:
        assert await receive(log) == "ready"
        client = await connect(f"{server.ws}/ends/{endpoint}")
        assert await receive(client) == "ready"
        await client.send("go")
        if how == "reset":
            reset(client)
        else:
            await client.close()
        # The code behind the block runs: the block was left as if it had come to its end.
        assert await receive(log) == f"after {endpoint}"
    await nothing_remains(server)
    assert server.log.count("Traceback") == errors


async def test_refusing_a_client_that_has_left_is_no_error(server: Server) -> None:
    errors = server.log.count("Traceback")
    for _ in range(10):
        client = await connect(f"{server.ws}/ends/too-late")
        assert await receive(client) == "ready"
        await client.send("go")
        reset(client)
    await nothing_remains(server)
    assert server.log.count("Traceback") == errors


async def test_refusing_a_client_that_does_not_read_is_no_error(server: Server) -> None:
    errors = server.log.count("Traceback")
    client = await connect_deaf(f"{server.ws}/ends/stalled")
    await client.send("go")

    async def it_is_given_up() -> bool:
        now = await server.get_json("/remains")
        return not (now["connections"] or now["alive"].get("Connection"))

    await eventually(it_is_given_up)
    client.transport.abort()
    await nothing_remains(server)
    assert server.log.count("Traceback") == errors


async def test_a_refusal_that_is_caught_around_the_block_has_closed_the_socket(server: Server) -> None:
    async with connect(f"{server.ws}/log") as log:
        assert await receive(log) == "ready"
        async with connect(f"{server.ws}/caught") as client:
            assert await closed(client) == (1008, "not your room")
        assert str(await receive(log)).startswith("after <Connection")
    await nothing_remains(server)


async def test_unexpected_exceptions_are_logged_with_their_traceback(server: Server) -> None:
    async with connect(f"{server.ws}/ends/exception") as client:
        await client.send("go")
        await closed(client)
    await eventually(lambda: "LookupError: a handler that raises" in server.log)


async def test_a_message_that_does_not_fit_is_answered_and_the_loop_continues(server: Server) -> None:
    async with connect(f"{server.ws}/moves") as client:
        await client.send('{"x": "many"}')
        error = await receive_json(client)
        assert error["type"] == "error"
        assert error["code"] == 107
        assert error["message"].startswith("Expected a message that fits Move, but got one with errors: x: ")
        assert error["errors"] == [{"loc": ["x"], "msg": error["errors"][0]["msg"], "type": "int_parsing"}]
        nonsense: list[str | bytes] = ["", "nonsense", "[" * 900, "null", b"\xff"]
        for garbage in nonsense:
            await client.send(garbage)
            assert (await receive_json(client))["code"] == 107
        await client.send('{"x": 3}')
        assert await receive_json(client) == {"moved": 3}
        await client.send(b'{"x": 4}')
        assert await receive_json(client) == {"moved": 4}


async def test_a_frame_of_the_wrong_kind_is_answered_and_the_loop_continues(server: Server) -> None:
    cases: list[tuple[str, str | bytes, str | bytes]] = [
        ("text", b"x", "yes"),
        ("bytes", "x", b"yes"),
        ("json", "{", '{"a":1}'),
    ]
    for kind, wrong, right in cases:
        async with connect(f"{server.ws}/kinds/{kind}") as client:
            await client.send(wrong)
            error = await receive_json(client)
            assert (error["type"], error["code"]) == ("error", 107)
            await client.send(right)
            assert await receive(client) == right
