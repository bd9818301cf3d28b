"""The client of the testing kit, on plain endpoints and on the hub's connection."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Literal

import pytest
from fastapi import Cookie, Depends, FastAPI, Header, HTTPException, Query, WebSocket, WebSocketException
from httpx2 import ASGITransport, AsyncClient
from pydantic import BaseModel, TypeAdapter
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from hubbub import Hub, InvalidData
from hubbub.testing import Closed, Refused, connect
from hubbub.testing.exchange import BUFFER
from tests.clients import DEADLINE


class Say(BaseModel):
    type: Literal["say"] = "say"
    text: str


class Left(BaseModel):
    type: Literal["left"] = "left"


hub = Hub(max_message_size=1000, allow_origins=["https://friend.example"])
app = FastAPI()
app.include_router(hub.router)


def current_user(token: Annotated[str | None, Query()] = None) -> str:
    if token is None:
        raise HTTPException(401, "not logged in", headers={"WWW-Authenticate": "Bearer"})
    return token


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    """Answer each message with itself; a bug if it is "bug"."""
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if message.get("text") == "bug":
            raise ZeroDivisionError("a bug in the handler")
        await websocket.send({**message, "type": "websocket.send"})


@app.websocket("/rooms/{name}")
async def room(websocket: WebSocket, name: str) -> None:
    async with hub.connection(websocket) as client:
        await client.subscribe(name)
        await client.send_text("welcome")
        async for text in client.iter_text():
            if text == "bug":
                raise ZeroDivisionError("a bug in the handler")
            await hub.publish(name, text)


@app.websocket("/user")
async def user(websocket: WebSocket, user: Annotated[str, Depends(current_user)]) -> None:
    async with hub.connection(websocket) as client:
        await client.send(user)


@app.websocket("/ends/{how}")
async def ends(websocket: WebSocket, how: str) -> None:
    if how == "refused by a close":
        await websocket.close(4001, "lost")
        return
    if how == "early bug":
        raise ZeroDivisionError
    if how == "never answers":
        await asyncio.Event().wait()
    if how == "forgets to answer":
        return
    await websocket.accept(headers=[(b"x-room", b"7")])
    if how == "closes":
        await websocket.send_text("bye")
        await websocket.close(4002, "enough")
    if how == "raises":
        raise WebSocketException(4003, "wrong")
    if how == "returns at once":
        return
    if how == "long reason":
        await websocket.close(1000, "x" * 124)
    if how == "wrong protocol":
        await websocket.send({"type": "websocket.accept"})
    if how == "waits":
        await websocket.receive()
        await asyncio.Event().wait()
    if how == "closes and fails":
        await websocket.close(1011)
        await asyncio.sleep(0)
        raise ZeroDivisionError


@app.post("/rooms/{name}")
async def post(name: str, text: str) -> None:
    await hub.publish(name, text)


async def test_messages_have_the_type_in_which_they_were_sent() -> None:
    async with connect(app, path="/echo") as client:
        await client.send({"a": [1, "ä"]})
        assert await client.receive() == {"a": [1, "ä"]}
        await client.send(Say(text="hi"))
        assert await client.receive(Say) == Say(text="hi")
        await client.send("no JSON")
        assert await client.receive() == "no JSON"
        await client.send(b'{"binary": 1}')
        assert await client.receive() == b'{"binary": 1}'
        await client.send('{"a":1}')
        assert await client.receive(str) == '{"a":1}'
        await client.send(b"\xff")
        assert await client.receive(bytes) == b"\xff"
        await client.send("")
        assert await client.receive() == ""
        await client.send({"type": "left"})
        adapter: TypeAdapter[Say | Left] = TypeAdapter(Say | Left)
        assert await client.receive(adapter) == Left()
        with pytest.raises(InvalidData):
            await client.send({1: object()})
        with pytest.raises(InvalidData):
            await client.send("\ud800")


async def test_a_message_that_does_not_fit_is_named() -> None:
    async with connect(app, path="/echo") as client:
        for sent, model, text in [
            ('{"type":"say"}', Say, r"Expected a message that fits Say.*text: .*it is \{\"type\":\"say\"\}"),
            ("{", Say, "Invalid JSON"),
            (b"x", str, "Expected a message as str, but got b'x'"),
            ("x", bytes, "Expected a message as bytes, but got x"),
        ]:
            await client.send(sent)
            with pytest.raises(AssertionError, match=text):
                await client.receive(model)


async def test_a_wait_ends_at_its_deadline() -> None:
    """Starlette's test client waits for ever here."""
    async with connect(app, path="/echo") as client:
        with pytest.raises(TimeoutError, match=r"No message arrived within 0.01 s; .* sent 0 .* nothing"):
            await client.receive(timeout=0.01)
        await client.send("hi")
        await client.receive()
        with pytest.raises(TimeoutError, match=r"sent 1 messages, the last one hi, and received 1.*one hi"):
            await client.receive(timeout=0.01)
        # A message that arrives after the deadline is the next one.
        await client.send("late")
        assert await client.receive() == "late"
    async with connect(app, path="/echo", timeout=0.5) as client:
        with pytest.raises(TimeoutError, match=r"within 0\.5 s"):
            await client.receive()
    for seconds in (0, -1):
        with pytest.raises(ValueError, match="greater than 0"):
            async with connect(app, path="/echo") as client:
                await client.receive(timeout=seconds)
        with pytest.raises(ValueError, match="greater than 0"):
            async with connect(app, path="/echo", timeout=seconds):
                pass


async def test_nothing_may_arrive() -> None:
    async with connect(app, path="/echo") as client:
        await client.receive_nothing(seconds=0.01)
        await client.send("hi")
        with pytest.raises(AssertionError, match="Expected no message within 5 s, but got hi"):
            await client.receive_nothing(seconds=5)
        await client.close()
        with pytest.raises(Closed):
            await client.receive_nothing()


async def test_a_bug_of_the_handler_is_raised_in_the_test() -> None:
    for path in ("/echo", "/rooms/a"):
        async with connect(app, path=path) as client:
            if path == "/rooms/a":
                assert await client.receive() == "welcome"
            await client.send("bug")
            # Not after the deadline.
            with pytest.raises(ZeroDivisionError, match="a bug in the handler") as bug:
                await client.receive(timeout=DEADLINE)
            [note] = bug.value.__notes__
            assert f"at {path}. Its client: closed with 10" in note
            # Again, at each further call; and no more at the end, since the test knows it.
            with pytest.raises(ZeroDivisionError):
                await client.send("more")


async def test_a_bug_that_the_test_has_not_seen_is_raised_at_the_end_of_the_block() -> None:
    with pytest.raises(ZeroDivisionError, match="a bug in the handler"):
        async with connect(app, path="/echo") as client:
            await client.send("bug")

    # Not in place of the test's own exception, but as a note of it.
    async def fails_itself() -> None:
        async with connect(app, path="/echo") as client:
            await client.send("bug")
            raise KeyError

    with pytest.raises(KeyError) as own:
        await fails_itself()
    assert own.value.__notes__ == [
        "Meanwhile the app under test has failed with ZeroDivisionError('a bug in the handler')."
    ]


async def test_a_bug_after_the_close_is_more_important_than_the_close() -> None:
    async with connect(app, path="/ends/closes and fails") as client:
        with pytest.raises(ZeroDivisionError):
            await client.receive()


async def test_a_bug_before_the_acceptance_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        async with connect(app, path="/ends/early bug"):
            raise AssertionError


async def test_refusals_have_status_detail_and_headers() -> None:
    with pytest.raises(Refused, match="refused with 401: not logged in") as refused:
        async with connect(app, path="/user"):
            raise AssertionError
    assert (refused.value.status_code, refused.value.detail) == (401, "not logged in")
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"
    assert refused.value.body == b'{"detail":"not logged in"}'
    async with connect(app, path="/user", query={"token": "ann"}) as client:
        assert await client.receive() == "ann"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/ends/refused by a close", 403, "closed the socket with 4001, 'lost', before"),
        ("/ends/forgets to answer", 500, "returned without accepting"),
        ("/no/such/path", 403, "refused with 403"),
    ],
)
async def test_refusals_without_a_status_have_that_of_a_server(path: str, status: int, text: str) -> None:
    with pytest.raises(Refused, match=text) as refused:
        async with connect(app, path=path):
            raise AssertionError
    assert refused.value.status_code == status


async def test_an_app_that_never_answers_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TimeoutError, match="neither accepted nor refused the client of /ends/never answers"):
        async with connect(app, path="/ends/never answers", timeout=0.05):
            raise AssertionError
    assert "did not return within 0.05 s after its client had left /ends/never answers" in caplog.text


async def test_origin_and_hosts_are_checked_as_on_a_server() -> None:
    guarded = FastAPI()
    guarded_hub = Hub(hosts=["example.com"])
    guarded.include_router(guarded_hub.router)

    @guarded.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with guarded_hub.connection(websocket) as client:
            await client.send("hello")

    with pytest.raises(Refused, match="Host header") as refused:
        async with connect(guarded, path="/"):
            raise AssertionError
    assert refused.value.status_code == 403
    async with connect(guarded, path="/", headers={"Host": "example.com"}) as client:
        assert await client.receive() == "hello"
    for origin, is_allowed in {
        "https://evil.example": False,
        "https://friend.example": True,
        "http://testserver": True,
    }.items():
        if is_allowed:
            async with connect(app, path="/rooms/a", headers={"Origin": origin}) as client:
                assert await client.receive() == "welcome"
        else:
            with pytest.raises(Refused, match=r"Pages from 'https://evil\.example' may not connect"):
                async with connect(app, path="/rooms/a", headers={"Origin": origin}):
                    raise AssertionError


@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [("closes", 4002, "enough"), ("raises", 4003, "wrong"), ("returns at once", 1006, "")],
)
async def test_closes_have_code_and_reason(how: str, code: int, reason: str) -> None:
    async with connect(app, path=f"/ends/{how}") as client:
        assert client.headers["X-Room"] == "7"
        if how == "closes":
            assert await client.receive() == "bye"
        for _ in range(2):
            with pytest.raises(Closed, match=f"closed with {code}") as closed:
                await client.receive()
            assert (closed.value.code, closed.value.reason) == (code, reason)
        with pytest.raises(Closed):
            await client.send("too late")


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("long reason", ValueError, "at most 123 bytes"),
        ("wrong protocol", RuntimeError, "Expected ASGI message|Unexpected ASGI message"),
    ],
)
async def test_mistakes_that_a_server_answers_with_1006_are_raised(
    how: str, error: type[Exception], text: str
) -> None:
    async with connect(app, path=f"/ends/{how}") as client:
        with pytest.raises(error, match=text):
            await client.receive()


async def test_a_loop_ends_with_the_connection() -> None:
    async with connect(app, path="/rooms/a") as client:
        await client.send("1")
        await client.send("2")
        received = []
        async for message in client:
            received.append(message)
            if message == 2:
                await client.close()
        assert received == ["welcome", 1, 2]
    async with connect(app, path="/ends/closes") as client:
        assert await anext(client) == "bye"
        with pytest.raises(Closed, match="4002"):
            await anext(client)


async def test_a_client_that_closes_is_seen_by_the_app_with_code_and_reason() -> None:
    seen: list[Any] = []
    plain = FastAPI()

    @plain.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                seen.append(await websocket.receive_text())
        except WebSocketDisconnect as exc:
            seen.append((exc.code, exc.reason))

    async with connect(plain, path="/") as client:
        await client.send("before")
        await client.close(4000, "bye")
        # The app has returned by now.
        assert seen == ["before", (4000, "bye")]
        with pytest.raises(Closed, match="closed with 4000, 'bye'"):
            await client.receive()
        await client.close()
    async with connect(plain, path="/"):
        pass
    assert seen[-1] == (1000, "")
    async with connect(plain, path="/") as client:
        with pytest.raises(ValueError, match="Expected a close code"):
            await client.close(1005)
        with pytest.raises(ValueError, match="at most 123 bytes"):
            await client.close(1000, "ä" * 62)


async def test_an_endpoint_that_does_not_catch_the_disconnect_is_no_error() -> None:
    plain = FastAPI()

    @plain.websocket("/{how}")
    async def endpoint(websocket: WebSocket, how: str) -> None:
        await websocket.accept()
        if how == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(websocket.receive_text())
        elif how == "send":
            while True:
                await websocket.send_text("x" * 1000)
        else:
            await websocket.receive_text()

    for how in ("receive", "group", "send"):
        async with connect(plain, path=f"/{how}"):
            pass


async def test_a_handler_that_hangs_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    async with connect(app, path="/ends/waits", timeout=0.5):
        pass
    assert "cancelling it. It would run on under a server" in caplog.text
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_a_handler_that_ignores_its_cancellation_fails_the_test() -> None:
    done = asyncio.Event()
    plain = FastAPI()

    @plain.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        while not done.is_set():
            with suppress(asyncio.CancelledError):
                await done.wait()

    with pytest.raises(TimeoutError, match=r"did not end within 0\.5 s after it was cancelled"):
        async with connect(plain, path="/", timeout=0.5):
            pass
    done.set()
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_cancelled_test_leaves_no_task() -> None:
    entered = asyncio.Event()

    async def test() -> None:
        async with connect(app, path="/echo"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(test())
    await entered.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_nothing_is_left_and_nothing_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with connect(app, path="/rooms/a") as client:
            await client.receive()
        with pytest.raises(Refused):
            async with connect(app, path="/user"):
                pass
        gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert repr(hub) == "<Hub MemoryEngine stopped>"


async def test_several_clients_and_http_requests_share_the_app() -> None:
    async with (
        connect(app, path="/rooms/a") as ann,
        connect(app, path="/rooms/a") as bob,
        AsyncClient(transport=ASGITransport(app), base_url="http://testserver") as http,
    ):
        for client in (ann, bob):
            assert await client.receive() == "welcome"
        await ann.send("hi")
        assert [await ann.receive(), await bob.receive()] == ["hi", "hi"]
        assert (await http.post("/rooms/a", params={"text": "posted"})).status_code == 200
        assert [await ann.receive(), await bob.receive()] == ["posted", "posted"]


async def test_overrides_work_as_with_fastapi() -> None:
    app.dependency_overrides[current_user] = lambda: "test user"
    try:
        async with connect(app, path="/user") as client:
            assert await client.receive() == "test user"
    finally:
        app.dependency_overrides.clear()


async def test_the_request_is_that_of_a_client() -> None:
    seen: dict[str, Any] = {}
    plain = FastAPI()

    @plain.websocket("/things/{name:path}")
    async def endpoint(
        websocket: WebSocket,
        name: str,
        limit: Annotated[int, Query()],
        tag: Annotated[list[str], Query()],
        session: Annotated[str, Cookie()],
        x_own: Annotated[str, Header()],
    ) -> None:
        await websocket.accept(subprotocol="b")
        seen.update(name=name, limit=limit, tag=tag, session=session, x_own=x_own, scope=websocket.scope)

    async with connect(
        plain,
        path="/things/a b/%2Fc?limit=7",
        query={"tag": ["x&y", "ö"]},
        cookies={"session": "s1", "other": "o"},
        headers=[("X-Own", "é")],
        subprotocols=["a", "b"],
    ) as client:
        assert client.subprotocol == "b"
    scope = seen.pop("scope")
    assert seen == {"name": "a b//c", "limit": 7, "tag": ["x&y", "ö"], "session": "s1", "x_own": "é"}
    headers = dict(scope["headers"])
    assert headers[b"host"] == b"testserver"
    assert headers[b"sec-websocket-version"] == b"13"
    assert headers[b"sec-websocket-protocol"] == b"a, b"
    assert headers[b"cookie"] == b"session=s1; other=o"
    assert scope["subprotocols"] == ["a", "b"]
    assert scope["raw_path"] == b"/things/a%20b/%2Fc"
    assert scope["query_string"] == b"limit=7&tag=x%26y&tag=%C3%B6"
    assert scope["client"][0] == "127.0.0.1"
    assert "websocket.http.response" in scope["extensions"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, ValueError, "either a channel or path"),
        ({"channel": "a", "path": "/echo"}, ValueError, "either a channel or path"),
        ({"path": "echo"}, ValueError, "begins with '/'"),
        ({"path": "/echo#x"}, ValueError, "has no '#'"),
        ({"path": "/echo", "headers": {"Upgrade": "x"}}, ValueError, "other than those of the handshake"),
        ({"path": "/echo", "headers": {"Sec-WebSocket-Protocol": "x"}}, ValueError, "Use subprotocols"),
        ({"path": "/echo", "headers": {"a b": "x"}}, ValueError, "that can be sent"),
        ({"path": "/echo", "headers": {"a": "x\r\ny: z"}}, ValueError, "that can be sent"),
        ({"path": "/echo", "headers": {"a": 1}}, TypeError, "headers as str"),
        ({"path": "/echo", "subprotocols": "chat"}, ValueError, "as a list of tokens"),
        ({"path": "/echo", "subprotocols": ["a b"]}, ValueError, "as a list of tokens"),
        ({"path": "/echo", "cookies": {"a": "b;c"}}, ValueError, "without ';'"),
        ({"path": "/echo", "cookies": {"a": "b"}, "headers": {"cookie": "x"}}, ValueError, "either cookies"),
        ({"path": "/echo", "query": {"a": None}}, TypeError, "but got None"),
    ],
)
async def test_a_wrong_argument_is_refused(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        async with connect(app, **options):
            raise AssertionError
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_subprotocol_that_was_not_offered_is_a_bug_of_the_app() -> None:
    plain = FastAPI()

    @plain.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="other")

    with pytest.raises(ValueError, match=r"the client offers \(mine\), but got 'other'"):
        async with connect(plain, path="/", subprotocols=["mine"]):
            raise AssertionError


async def test_a_message_beyond_the_limit_of_the_hub_closes_with_1009() -> None:
    async with connect(app, path="/rooms/a") as client:
        assert await client.receive() == "welcome"
        await client.send("x" * 1001)
        with pytest.raises(Closed) as closed:
            await client.receive()
        assert closed.value.code == 1009


async def test_a_message_beyond_the_limit_of_the_server_closes_with_1009() -> None:
    async with connect(app, path="/echo") as client:
        await client.send(bytes(16_777_217))
        with pytest.raises(Closed) as closed:
            await client.receive()
        assert closed.value.code == 1009


async def test_a_client_that_does_not_read_makes_the_app_wait() -> None:
    sent = 0
    plain = FastAPI()

    @plain.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        nonlocal sent
        await websocket.accept()
        while sent < 500:
            await websocket.send_bytes(bytes(1000))
            sent += 1

    async with connect(plain, path="/") as client:
        for _ in range(1000):
            await asyncio.sleep(0)
        assert BUFFER / 1010 - 1 <= sent <= BUFFER / 1010 + 1
        for _ in range(500):
            assert len(await client.receive(bytes)) == 1000
        with pytest.raises(Closed):
            await client.receive()


async def test_empty_messages_fill_the_buffer_too() -> None:
    sent = 0
    plain = FastAPI()

    @plain.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        nonlocal sent
        await websocket.accept()
        while True:
            await websocket.send_text("")
            sent += 1

    async with connect(plain, path="/"):
        for _ in range(10):
            await asyncio.sleep(0)
        assert 0 < sent <= BUFFER / 10 + 1


async def test_a_slow_client_is_disconnected_by_the_hub() -> None:
    slow = Hub(outbox_limit=10_000, close_timeout=0.05)
    plain = FastAPI()
    plain.include_router(slow.router)

    @plain.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        async with slow.connection(websocket) as client:
            await client.subscribe("news")
            await client.send("ready")
            async for _ in client.iter_text():
                pass

    async with connect(plain, path="/") as reader, connect(plain, path="/") as sleeper:
        for client in (reader, sleeper):
            assert await client.receive() == "ready"
        while not slow.stats().slow_disconnects:
            await slow.publish("news", bytes(5000))
            assert len(await reader.receive(bytes)) == 5000
        with pytest.raises(Closed):
            async for _ in sleeper:
                pass
        await slow.publish("news", "on")
        assert await reader.receive() == "on"


async def test_an_app_that_does_not_receive_makes_its_client_wait() -> None:
    receives = asyncio.Event()
    plain = FastAPI()

    @plain.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await receives.wait()
        while True:
            await websocket.receive_bytes()

    async with connect(plain, path="/", timeout=0.5) as client:
        for _ in range(7):
            await client.send(bytes(10_000))
        with pytest.raises(TimeoutError, match=r"The app took no message within 0\.5 s"):
            await client.send(b"one more")
        receives.set()
        await client.send(b"one more")
    async with connect(plain, path="/") as client:
        for _ in range(100):
            await client.send(bytes(10_000))


async def test_one_task_at_a_time_receives() -> None:
    async with connect(app, path="/echo") as client:
        waiting = asyncio.create_task(client.receive())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one task at a time"):
            await client.receive()
        await client.send("hi")
        assert await waiting == "hi"


async def test_any_asgi_application_will_do() -> None:
    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            raise AssertionError("no lifespan here")
        events: list[Message] = [await receive()]
        await send({"type": "websocket.accept"})
        events.append(await receive())
        await send({"type": "websocket.send", "text": ",".join(event["type"] for event in events)})
        await send({"type": "websocket.close"})
        events.append(await receive())
        assert events[-1] == {"type": "websocket.disconnect", "code": 1000, "reason": ""}

    async with connect(plain, path="/") as client:
        await client.send("hi")
        assert await client.receive() == "websocket.connect,websocket.receive"
        with pytest.raises(Closed) as closed:
            await client.receive()
        assert closed.value.code == 1000
    with pytest.raises(ValueError, match="one without"):
        async with connect(plain, "room"):
            raise AssertionError


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    async with connect(app, path="/echo") as client:
        yield client


async def test_a_fixture_may_hold_a_client(client: Any) -> None:
    """pytest-asyncio sets up and tears down in different tasks."""
    await client.send("hi")
    assert await client.receive() == "hi"


def test_another_event_loop_is_refused() -> None:
    """A trio test steps its coroutine without asyncio's loop, as this does."""
    opening = connect(app, path="/echo").__aenter__()
    with pytest.raises(RuntimeError, match="anyio_backend return 'asyncio'"):
        opening.send(None)


async def test_debug_logging_shows_an_app_without_lifespan(caplog: pytest.LogCaptureFixture) -> None:
    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})

    with caplog.at_level(logging.DEBUG, "hubbub.testing.app_lifespan"):
        async with connect(plain, path="/"):
            pass
    assert "The app has no lifespan" in caplog.text
