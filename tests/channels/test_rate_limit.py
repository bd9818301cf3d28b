"""RateLimit: by user, by connection, or by address; in bounded memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, WebSocket
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

import hubbub.channels.rate_limit
from hubbub import Hub, Identity, RateLimit
from hubbub.channels.current import CALL, Call, Client
from tests.clock import FakeClock


def request(
    address: str | None = "192.0.2.1", *, user: str | None = None, connection: str | None = None
) -> HTTPConnection:
    """A request to a plain route; with a user or a connection, a call of a handler."""
    scope: dict[str, Any] = {
        "type": "http",
        "headers": [],
        "client": None if address is None else (address, 1234),
    }
    http = HTTPConnection(scope)
    if user is not None or connection is not None:
        opened: Any = None if connection is None else SimpleNamespace(id=connection)
        client = Client(http)
        client.identity, client.connection = Identity(user), opened
        scope[CALL] = Call(client)
    return http


async def passes(limit: RateLimit, http: HTTPConnection) -> bool:
    try:
        await limit(http)
    except HTTPException:
        return False
    return True


async def test_calls_beyond_the_rate_are_refused_with_429() -> None:
    clock = FakeClock()
    limit = RateLimit("5/minute", clock=clock)
    assert [await passes(limit, request()) for _ in range(7)] == [True] * 5 + [False] * 2
    with pytest.raises(HTTPException) as refused:
        await limit(request())
    assert refused.value.status_code == 429
    assert refused.value.headers == {"Retry-After": "12"}
    assert isinstance(refused.value.detail, str)
    clock.advance(11.5)
    with pytest.raises(HTTPException) as refused:
        await limit(request())
    assert refused.value.headers == {"Retry-After": "1"}
    clock.advance(0.5)
    assert [await passes(limit, request()) for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("rate", "burst", "first", "seconds"),
    [
        ("10/second", None, 10, 0.1),
        ("100/hour", None, 100, 36),
        ("100/hour", 2, 2, 36),
        ("1/second", 3, 3, 1),
    ],
)
async def test_rates_and_bursts(rate: str, burst: int | None, first: int, seconds: float) -> None:
    clock = FakeClock()
    limit = RateLimit(rate, burst=burst, clock=clock)
    assert [await passes(limit, request()) for _ in range(first + 1)] == [True] * first + [False]
    clock.advance(seconds * 0.99)
    assert not await passes(limit, request())
    clock.advance(seconds * 0.02)
    assert [await passes(limit, request()) for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("one", "other", "is_the_same"),
    [
        # A user is one client, whichever connection and address it has.
        (request(user="ann", connection="c1"), request("192.0.2.9", user="ann", connection="c2"), True),
        (request(user="ann"), request(user="bob"), False),
        # Without a user: the connection.
        (request(connection="c1"), request("192.0.2.9", connection="c1"), True),
        (request(connection="c1"), request(connection="c2"), False),
        (request(user="", connection="c1"), request(user="", connection="c2"), False),
        # Without either: the address.
        (request("192.0.2.1"), request("192.0.2.1"), True),
        (request("192.0.2.1"), request("192.0.2.2"), False),
        (request("2001:db8::1"), request("2001:db8::ffff:2"), True),
        (request("2001:db8::1"), request("2001:db8:0:1::1"), False),
        (request("::ffff:192.0.2.1"), request("192.0.2.1"), True),
        (request("::ffff:192.0.2.1"), request("::ffff:192.0.2.2"), False),
        (request("fe80::1%eth0"), request("fe80::2"), True),
        (request("unix"), request("elsewhere"), False),
        (request(None), request(None), True),
        # A client cannot pass for another kind of client by its name.
        (request(user="192.0.2.1"), request("192.0.2.1"), False),
        (request(user="c1"), request(connection="c1"), False),
    ],
)
async def test_each_client_has_its_own_limit(
    one: HTTPConnection, other: HTTPConnection, is_the_same: bool
) -> None:
    limit = RateLimit("1/hour", clock=FakeClock())
    assert await passes(limit, one)
    assert await passes(limit, other) == (not is_the_same)


async def test_each_object_counts_by_itself() -> None:
    first, second = RateLimit("1/hour"), RateLimit("1/hour")
    assert await passes(first, request())
    assert await passes(second, request())


async def test_clients_that_are_not_held_back_are_forgotten() -> None:
    clock = FakeClock()
    limit = RateLimit("10/second", clock=clock)
    for number in range(50):
        await limit(request(user=f"u{number}"))
    assert limit.clients == 50
    clock.advance(10)
    # Each call removes more than it adds.
    for number in range(60):
        await passes(limit, request(user=f"v{number % 2}"))
    assert limit.clients <= 2


async def test_no_more_than_so_many_clients_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubbub.channels.rate_limit, "MAX_CLIENTS", 20)
    limit = RateLimit("1/hour", clock=FakeClock())
    for number in range(200):
        await passes(limit, request(user=f"u{number}"))
        # It calls all the time, so it is not forgotten.
        assert await passes(limit, request(user="busy")) == (number == 0)
        assert limit.clients <= 20


async def test_a_long_address_takes_little_memory() -> None:
    limit = RateLimit("1/hour", clock=FakeClock())
    assert await passes(limit, request("x" * 10_000))
    assert not await passes(limit, request("x" * 9_000))


@pytest.mark.parametrize(
    "rate",
    [
        *("", "10", "10/", "/second", "ten/second", "0/second", "-1/second", "1.5/second", "10/day", "10/s"),
        *(
            "10/seconds",
            "10 /second",
            "10/second ",
            "10/second\n",
            "10/Second",
            "1_0/second",
            "\u0661/second",
        ),
        "9999999999/second",
    ],
)
def test_a_wrong_rate_is_refused_at_once(rate: str) -> None:
    with pytest.raises(ValueError, match="Expected a rate such as '10/second', '5/minute' or '100/hour'"):
        RateLimit(rate)


@pytest.mark.parametrize(
    ("rate", "options", "error", "message"),
    [
        (10, {}, TypeError, "a rate as str, such as '10/second', but got 10"),
        (None, {}, TypeError, "a rate as str"),
        ("10/second", {"burst": 0}, ValueError, "burst to be greater than 0"),
        ("10/second", {"burst": 1.5}, TypeError, "burst as int"),
        ("10/second", {"burst": True}, TypeError, "burst as int"),
        ("10/second", {"burst": 10**9}, ValueError, "burst to be at most"),
    ],
)
def test_wrong_parameters_are_refused_at_once(
    rate: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"Expected {message}"):
        RateLimit(rate, **options)


def test_it_is_shown_as_it_was_made() -> None:
    assert repr(RateLimit("10/second")) == "RateLimit('10/second', burst=10)"


def test_routes_and_endpoints_of_an_application_can_use_it() -> None:
    hub, app = Hub(), FastAPI()
    app.include_router(hub.router)
    limit = RateLimit("3/hour")

    @app.get("/report", dependencies=[Depends(limit)])
    async def report() -> str:
        return "done"

    async def ws(websocket: WebSocket, limited: Annotated[None, Depends(limit)]) -> None:
        async with hub.connection(websocket) as client:
            await client.send("welcome")

    # The annotations are strings, and this one names a variable of this function.
    ws.__annotations__.update(websocket=WebSocket, limited=Annotated[None, Depends(limit)])
    app.websocket("/ws")(ws)

    with TestClient(app) as client:
        assert client.get("/report").status_code == 200
        assert "limit" not in str(client.get("/openapi.json").json()["paths"]["/report"]["get"])
        with client.websocket_connect("/ws") as socket:
            assert socket.receive_text() == "welcome"
        assert client.get("/report").status_code == 200
        answer = client.get("/report")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1200")
