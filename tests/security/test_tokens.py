"""The connect token: the places where it is looked for, and the refusal of one that cannot be read."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from hubbub import ConnectToken
from hubbub.security.tokens import (
    ExpiredToken,
    ForeignToken,
    InvalidToken,
    MissingToken,
    connect_token,
    select_subprotocol,
    with_token,
)


def subprotocol(token: str) -> str:
    return "hubbub.token." + urlsafe_b64encode(token.encode()).decode().rstrip("=")


def scope(
    *, authorization: str | None = None, subprotocols: list[str] | None = None, query: str = ""
) -> dict[str, Any]:
    headers = [(b"host", b"localhost")]
    if authorization is not None:
        headers.append((b"authorization", authorization.encode()))
    return {
        "type": "websocket",
        "path": "/",
        "headers": headers,
        "subprotocols": subprotocols or [],
        "query_string": query.encode(),
    }


async def token_of(scope: dict[str, Any]) -> str | None:
    return await connect_token(HTTPConnection(scope))


@pytest.mark.parametrize(
    ("authorization", "subprotocols", "query", "token"),
    [
        (None, None, "", None),
        ("Bearer one", ["hubbub", subprotocol("two")], "token=three", "one"),
        ("bearer one", None, "", "one"),
        (None, ["hubbub", subprotocol("two")], "token=three", "two"),
        (None, [subprotocol("two"), "hubbub"], "", "two"),
        (None, ["hubbub"], "token=three", "three"),
        ("Basic YTpi", None, "token=three", "three"),
        # Empty places have no token.
        ("Bearer", ["hubbub", "hubbub.token."], "token=three", "three"),
        ("Bearer ", None, "a=1&token=", None),
        (None, None, "token=a%2Bb%20c&other=1", "a+b c"),
        (None, None, "Token=x&tokens=y", None),
        (None, [subprotocol("ünï.cöde")], "", "ünï.cöde"),
    ],
)
async def test_the_first_place_with_a_token_counts(
    authorization: str | None, subprotocols: list[str] | None, query: str, token: str | None
) -> None:
    assert await token_of(scope(authorization=authorization, subprotocols=subprotocols, query=query)) == token


@pytest.mark.parametrize("encoded", ["a", "a+b/", "YQ==", "%%", "_w", "ü"])
async def test_a_subprotocol_that_cannot_be_read_is_a_wrong_token_and_not_an_absent_one(encoded: str) -> None:
    with pytest.raises(InvalidToken) as refused:
        await token_of(scope(subprotocols=["hubbub", f"hubbub.token.{encoded}"], query="token=right"))
    assert refused.value.status_code == 401
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@given(token=st.text(min_size=1))
async def test_any_text_comes_through_the_subprotocol_and_the_query(token: str) -> None:
    try:
        token.encode()
    except UnicodeEncodeError:
        return
    assert await token_of(scope(subprotocols=[subprotocol(token)])) == token
    assert await token_of(scope(query=f"token={quote(token)}")) == token


@given(encoded=st.text(), query=st.binary(max_size=50))
async def test_garbage_is_a_token_or_refused(encoded: str, query: bytes) -> None:
    garbage = {**scope(subprotocols=[f"hubbub.token.{encoded}"]), "query_string": query}
    with suppress(InvalidToken):
        assert await token_of(garbage) != ""


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        ([], None),
        (["hubbub"], "hubbub"),
        (["hubbub", "hubbub.token.YQ"], "hubbub"),
        (["hubbub.token.YQ", "hubbub"], "hubbub"),
        (["hubbub.token.YQ"], None),
        (["Hubbub", "chat"], None),
    ],
)
def test_the_subprotocol_with_the_token_is_never_selected(offered: list[str], selected: str | None) -> None:
    assert select_subprotocol(offered) == selected


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (InvalidToken, "invalid token"),
        (ExpiredToken, "token expired"),
        (ForeignToken, "token of another user or channel"),
        (MissingToken, "no token"),
    ],
)
def test_refusals_ask_for_a_bearer_token(error: type[InvalidToken], detail: str) -> None:
    refusal = error()
    assert (refusal.status_code, refusal.detail) == (401, detail)
    assert refusal.headers == {"WWW-Authenticate": "Bearer"}


# Refresh


@pytest.mark.parametrize(
    "old",
    [
        scope(),
        scope(authorization="Bearer old"),
        scope(authorization="Basic YTpi", query="a=1&token=old&b=%20"),
        scope(subprotocols=["hubbub", subprotocol("old")], query="to%6ben=old"),
    ],
)
async def test_a_new_token_takes_all_places_of_the_old_one(old: dict[str, Any]) -> None:
    before = repr(old)
    new = with_token(old, "new+/=")
    assert await token_of(new) == "new+/="
    # An application may read one place by itself.
    connection = HTTPConnection(new)
    assert connection.headers["authorization"] == "Bearer new+/="
    assert connection.query_params.get("token", "new+/=") == "new+/="
    assert connection.query_params.get("b", " ") == " "
    assert "old" not in repr(new)
    assert subprotocol("old") not in new["subprotocols"]
    assert repr(old) == before


@pytest.mark.parametrize("token", ["", "a\nb", "a\x00", "tökén", "\ud800"])
async def test_a_new_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(InvalidToken):
        with_token(scope(), token)


# FastAPI

app = FastAPI()


@app.get("/whoami")
async def whoami(token: ConnectToken) -> str | None:
    return token


@app.websocket("/ws")
async def ws(websocket: WebSocket, token: ConnectToken) -> None:
    await websocket.accept(select_subprotocol(websocket.scope["subprotocols"]))
    await websocket.send_json(token)
    await websocket.close()


def test_it_is_a_dependency_of_routes_and_of_websockets() -> None:
    client = TestClient(app)
    assert client.get("/whoami", headers={"Authorization": "Bearer t"}).json() == "t"
    assert client.get("/whoami?token=t").json() == "t"
    assert client.get("/whoami").json() is None
    with client.websocket_connect("/ws", subprotocols=["hubbub", subprotocol("t")]) as socket:
        assert socket.receive_json() == "t"
        assert socket.accepted_subprotocol == "hubbub"


def test_it_is_a_security_scheme_in_openapi() -> None:
    document = app.openapi()
    scheme = document["components"]["securitySchemes"]["ConnectToken"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert document["paths"]["/whoami"]["get"]["security"] == [{"ConnectToken": []}]
    assert "parameters" not in document["paths"]["/whoami"]["get"]
