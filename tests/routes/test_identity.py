"""Tokens on the WebSocket door of real servers: the identity of a client, its expiry, and refresh."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from websockets.exceptions import InvalidStatus

from tests.clients import closed, connect, http_client, receive_json
from tests.security.signing import SECRET, sign
from tests.uvicorn_process import ROOT, Server, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Seconds until tokens expire: of those that expire in a test, and of those that do not.
SHORT, LONG = 5, 3600


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["hubbub run", "uvicorn", "uvicorn queued"]
)
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    log = tmp_path_factory.mktemp("identities") / "server.log"
    async with serve("tests.apps.identities:app", log, command=request.param, cwd=ROOT) as server:
        yield server
        assert "Traceback" not in server.log


def token(user: str | None = "ann", seconds: float | None = LONG, **claims: Any) -> str:
    if user is not None:
        claims["sub"] = user
    if seconds is not None:
        claims["exp"] = time.time() + seconds
    return sign(claims)


def subprotocol(token: str) -> str:
    return "hubbub.token." + urlsafe_b64encode(token.encode()).decode().rstrip("=")


def refresh(token: str) -> str:
    return json.dumps({"type": "refresh", "token": token})


async def refused(url: str, **options: Any) -> tuple[int, str, str | None]:
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, **options)
    response = caught.value.response
    detail = json.loads(response.body or b"{}")["detail"]
    return response.status_code, detail, response.headers.get("www-authenticate")


async def test_a_token_is_taken_from_each_place_and_the_first_one_counts(server: Server) -> None:
    url = f"{server.ws}/channels/room:1"
    ann, bob, eve = (token(user) for user in ("ann", "bob", "eve"))
    authorization = {"Authorization": f"Bearer {ann}"}
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({"additional_headers": authorization, "subprotocols": ["hubbub", subprotocol(bob)]}, eve, "ann"),
        ({"subprotocols": ["hubbub", subprotocol(bob)]}, eve, "bob"),
        ({"subprotocols": ["hubbub"]}, eve, "eve"),
        ({}, "", None),
    ]
    for options, query, user in cases:
        async with connect(f"{url}?token={query}", **options) as client:
            # The subprotocol with the token is never selected.
            assert client.subprotocol == ("hubbub" if "subprotocols" in options else None)
            await client.send("{}")
            assert (await receive_json(client))["user"] == user


async def test_a_wrong_token_is_refused_with_401_before_the_socket_is_accepted(server: Server) -> None:
    url = f"{server.ws}/channels/room:1"
    right = token()
    for wrong in ["x", right[:-5], sign({}, SECRET + "x"), sign({"sub": "ann", "channel": "room:1"})]:
        assert await refused(f"{url}?token={wrong}") == (401, "invalid token", "Bearer")
    assert await refused(f"{url}?token={token(seconds=-1)}") == (401, "token expired", "Bearer")
    # The first place counts, even if the token there is wrong; one that cannot be read is wrong.
    headers = {"Authorization": "Bearer x"}
    assert (await refused(f"{url}?token={right}", additional_headers=headers))[0] == 401
    assert (await refused(f"{url}?token={right}", subprotocols=["hubbub", "hubbub.token.x"]))[0] == 401
    assert await refused(f"{server.ws}/channels/room:members") == (403, "members only", None)


async def test_a_route_takes_the_same_tokens(server: Server) -> None:
    async with http_client(base_url=server.http) as http:
        headers = {"Authorization": f"Bearer {token()}"}
        assert (await http.get("/me", headers=headers)).json() == "ann"
        assert (await http.get("/me", params={"token": token()})).json() == "ann"
        answer = await http.get("/me")
    assert (answer.status_code, answer.json()) == (401, {"detail": "no token"})
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_connection_expires_after_a_notice(server: Server) -> None:
    expires_at = time.time() + SHORT
    url = f"{server.ws}/channels/room:1?token={sign({'exp': expires_at})}&positions=1"
    async with connect(url) as client:
        # The message of the subscription is always the first.
        assert (await receive_json(client))["type"] == "subscribed"
        notice = await receive_json(client)
        assert notice["type"] == "expiring"
        assert 1 <= notice["seconds"] <= SHORT
        assert await closed(client) == (3005, "expired")
    assert time.time() >= expires_at


async def test_a_refresh_moves_the_expiry(server: Server) -> None:
    async def expires_later(room: str, query: str, **options: Any) -> None:
        async with connect(f"{server.ws}/channels/room:{room}{query}", **options) as client:
            assert (await receive_json(client))["type"] == "expiring"
            expires_at = time.time() + SHORT + 2
            await client.send(refresh(sign({"sub": "ann", "exp": expires_at, "info": "new"})))
            refreshed = await receive_json(client)
            assert refreshed["type"] == "refreshed"
            assert 0 <= refreshed["expires"] <= SHORT + 2
            # The notice of the new expiry comes at once.
            assert (await receive_json(client))["type"] == "expiring"
            # Handlers see the new identity.
            await client.send("{}")
            assert await receive_json(client) == {"user": "ann", "info": "new"}
            assert await closed(client) == (3005, "expired")
            assert time.time() >= expires_at

    short = token(seconds=SHORT, info="old")
    await asyncio.gather(
        expires_later("1", f"?token={short}"),
        expires_later("2", "", subprotocols=["hubbub", subprotocol(short)]),
    )


async def test_a_refresh_to_a_token_that_never_expires(server: Server) -> None:
    async with connect(f"{server.ws}/channels/room:1?token={token()}") as client:
        await client.send(refresh(token(seconds=None)))
        assert await receive_json(client) == {"type": "refreshed", "expires": None}


@pytest.mark.parametrize(
    "wrong",
    [
        "x",
        "",
        "\u2028ö\n",
        token(seconds=-1),
        token("bob", seconds=None),
        token(None, seconds=None),
        token(seconds=None, channel="room:1"),
        "x" * 100_000,
    ],
)
async def test_a_refresh_with_a_wrong_token_or_that_of_another_user_closes_with_3500(
    server: Server, wrong: str
) -> None:
    async with connect(f"{server.ws}/channels/room:1?token={token()}") as client:
        await client.send(refresh(wrong))
        code, reason = await closed(client)
    assert code == 3500
    assert reason in ("invalid token", "token of another user")


async def test_a_refresh_without_a_token_is_a_mistake_and_closes_nothing(server: Server) -> None:
    async with connect(f"{server.ws}/channels/room:1?token={token()}") as client:
        for mistake in ('{"type": "refresh"}', '{"type": "refresh", "token": 7}'):
            await client.send(mistake)
            error = await receive_json(client)
            assert (error["type"], error["code"]) == ("error", 107)
        await client.send("{}")
        assert (await receive_json(client))["user"] == "ann"
