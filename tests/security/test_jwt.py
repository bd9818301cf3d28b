"""JSON Web Tokens: claims become an identity, and wrong tokens are refused with 401 and never shown."""

from __future__ import annotations

import json
import logging
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import jwt as pyjwt
import pytest
from fastapi import Depends, FastAPI, HTTPException, WebSocket
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from hubbub import JWT, Identity
from hubbub.security import jwks
from hubbub.security.jwks import KeysUnavailable
from hubbub.security.jwt import MAX_TOKEN, SubscriptionToken
from hubbub.security.tokens import ExpiredToken, ForeignToken, InvalidToken, MissingToken
from tests.clients import DEADLINE
from tests.security.jwks_server import Provider, provider
from tests.security.signing import SECRET, ec_key, ed_key, jwk, public_pem, rsa_key, sign

TOKENS = JWT(SECRET, algorithms=["HS256"])


def later(seconds: float = 3600) -> int:
    return int(time.time() + seconds)


# Who it is


@pytest.mark.parametrize(
    ("claims", "identity"),
    [
        ({}, Identity()),
        ({"sub": "ann"}, Identity(user="ann")),
        ({"sub": ""}, Identity()),
        ({"sub": "ann", "info": {"name": "Ann"}}, Identity(user="ann", info={"name": "Ann"})),
        ({"info": None}, Identity()),
        ({"info": 1, "b64info": b64encode(b'{"a": [2]}').decode()}, Identity(info={"a": [2]})),
        ({"iat": 1, "nbf": 1, "jti": "x", "iss": "y"}, Identity()),
        ({"exp": 4_000_000_000}, Identity(expires_at=4_000_000_000)),
        ({"exp": 4_000_000_000.5}, Identity(expires_at=4_000_000_000.5)),
        ({"exp": 4_000_000_000, "expire_at": 4_000_000_009}, Identity(expires_at=4_000_000_009)),
        ({"exp": 4_000_000_000, "expire_at": 0}, Identity()),
        ({"expire_at": 4_000_000_000}, Identity(expires_at=4_000_000_000)),
        # Only with subscriptions=True.
        ({"channels": ["news"], "subs": {"chat": {}}}, Identity()),
        ({"channels": "nonsense"}, Identity()),
    ],
)
async def test_claims_become_an_identity(claims: dict[str, Any], identity: Identity) -> None:
    assert await TOKENS(sign(claims)) == identity


@pytest.mark.parametrize(
    ("claims", "channels"),
    [
        ({}, ()),
        ({"channels": ["news", "chat"]}, ("news", "chat")),
        ({"subs": {"chat": {"info": 1}}}, ("chat",)),
        ({"channels": ["news"], "subs": {"chat": {}}}, ("chat",)),
        ({"channels": [], "subs": {}}, ()),
        ({"channels": None}, ()),
    ],
)
async def test_claims_subscribe_only_if_that_is_allowed(
    claims: dict[str, Any], channels: tuple[str, ...]
) -> None:
    tokens = JWT(SECRET, algorithms=["HS256"], subscriptions=True)
    assert (await tokens(sign(claims))).channels == channels
    assert (await TOKENS(sign(claims))).channels == ()


async def test_a_client_without_a_token_is_anonymous_or_refused() -> None:
    required = JWT(SECRET, algorithms=["HS256"], required=True)
    for token in (None, ""):
        assert await TOKENS(token) == Identity()
        with pytest.raises(MissingToken):
            await required(token)
    assert (await required(sign({"sub": "ann"}))).user == "ann"


# Wrong tokens


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "a.b.c",
        "….….…",
        "\ud800",
        sign({"sub": "ann"}, SECRET + "x"),
        sign({"sub": "ann"}, algorithm="HS512"),
        sign({"sub": "ann"}) + "A",
        sign({"sub": "ann"})[:-4],
        pyjwt.encode({"sub": "ann"}, "", "none"),
        sign({"sub": "ann"}, crit=["x"], x=1),
        sign({"sub": 7}),
        sign({"sub": None}),
        sign({"sub": "\ud800"}),
        sign({"aud": "another service"}),
        sign({"nbf": later()}),
        sign({"iat": later()}),
        sign({"iat": "today"}),
        sign({"exp": "tomorrow"}),
        sign({"exp": str(later())}),
        sign({"exp": None}),
        sign({"exp": True}),
        sign({"exp": 10**400}),
        sign({"exp": float("inf")}),
        sign({"expire_at": -1}),
        sign({"expire_at": "never"}),
        sign({"expire_at": 10**400}),
        sign({"expire_at": float("inf")}),
        sign({"expire_at": float("nan")}),
        sign({"b64info": "not base64"}),
        sign({"b64info": b64encode(b"not JSON").decode()}),
        sign({"b64info": 7}),
        # A subscription token, signed by the same key, opens no connection.
        sign({"sub": "ann", "channel": "news"}),
        sign({"channel": None}),
        sign({"info": "x" * MAX_TOKEN}),
    ],
)
async def test_a_wrong_token_is_refused(token: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InvalidToken) as caught:
        await TOKENS(token)
    error = caught.value
    assert (error.status_code, error.detail) in [(401, "invalid token"), (401, "token expired")]
    assert error.headers == {"WWW-Authenticate": "Bearer"}
    # Nor does a traceback, or the log, show it.
    assert error.__suppress_context__ or error.__context__ is None
    assert token not in caplog.text


@pytest.mark.parametrize(
    ("claims", "leeway", "is_expired"),
    [
        ({"exp": -10}, 0, True),
        ({"exp": -10}, 60, False),
        ({"exp": 1}, 60, True),
        ({"expire_at": 1}, 0, True),
        ({"exp": 60, "expire_at": 1}, 0, True),
        ({"exp": -10, "expire_at": 0}, 0, True),
    ],
)
async def test_an_expired_token_is_refused_as_such(
    claims: dict[str, Any], leeway: int, is_expired: bool
) -> None:
    # Seconds from now, except for 0 and 1, which are long ago.
    claims = {name: value if value in (0, 1) else later(value) for name, value in claims.items()}
    tokens = JWT(SECRET, algorithms=["HS256"], leeway=leeway)
    if is_expired:
        with pytest.raises(ExpiredToken):
            await tokens(sign(claims))
    else:
        # The connection is open for as long as its token would be accepted.
        assert (await tokens(sign(claims))).expires_at == claims["exp"] + leeway


@pytest.mark.parametrize("channels", ["news", 2, [1], [None, "news"], [["news"]], True])
async def test_channels_that_are_no_names_are_refused(channels: Any) -> None:
    tokens = JWT(SECRET, algorithms=["HS256"], subscriptions=True)
    with pytest.raises(InvalidToken):
        await tokens(sign({"channels": channels}))


@pytest.mark.parametrize(
    ("options", "claims", "is_right"),
    [
        ({"audience": "chat"}, {"aud": "chat"}, True),
        ({"audience": "chat"}, {"aud": ["shop", "chat"]}, True),
        ({"audience": ["chat", "shop"]}, {"aud": "shop"}, True),
        ({"audience": "chat"}, {"aud": "shop"}, False),
        ({"audience": "chat"}, {}, False),
        ({"audience": "chat"}, {"aud": {"chat": 1}}, False),
        ({"issuer": "https://id"}, {"iss": "https://id"}, True),
        ({"issuer": ["https://id", "https://old"]}, {"iss": "https://old"}, True),
        ({"issuer": "https://id"}, {"iss": "https://id.evil"}, False),
        ({"issuer": "https://id"}, {}, False),
    ],
)
async def test_audience_and_issuer(options: dict[str, Any], claims: dict[str, Any], is_right: bool) -> None:
    tokens = JWT(SECRET, algorithms=["HS256"], **options)
    if is_right:
        assert (await tokens(sign({"sub": "ann", **claims}))).user == "ann"
    else:
        with pytest.raises(InvalidToken):
            await tokens(sign({"sub": "ann", **claims}))


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(rsa_key(), "RS256"), (rsa_key(), "PS384"), (ec_key(), "ES256"), (ed_key(), "EdDSA")],
)
async def test_public_keys(key: Any, algorithm: str) -> None:
    tokens = JWT(public_pem(key), algorithms=[algorithm])
    assert (await tokens(sign({"sub": "ann"}, key, algorithm))).user == "ann"
    other: Any = {"RS256": rsa_key(2), "PS384": rsa_key(2), "ES256": ec_key(2), "EdDSA": SECRET}[algorithm]
    signed = sign({}, other, "HS256" if other == SECRET else algorithm)
    with pytest.raises(InvalidToken):
        await tokens(signed)


async def test_a_public_key_is_no_secret() -> None:
    # Signed by hand, because the library refuses to: the attack on servers that let the token choose.
    pem = public_pem(rsa_key())
    head, body = (
        urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": "admin"})
    )
    algorithm: Any = pyjwt.get_algorithm_by_name("HS256")
    signature = urlsafe_b64encode(algorithm.sign(head + b"." + body, pem.encode())).rstrip(b"=")
    with pytest.raises(InvalidToken):
        await JWT(pem, algorithms=["RS256"])(b".".join([head, body, signature]).decode())


texts = st.text() | st.binary().map(lambda data: urlsafe_b64encode(data).rstrip(b"=").decode())
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
names = st.sampled_from(
    ["sub", "exp", "expire_at", "iat", "nbf", "aud", "iss", "jti", "info", "b64info", "channels", "subs"]
)


@given(parts=st.lists(texts, max_size=4))
async def test_garbage_is_refused(parts: list[str]) -> None:
    token = ".".join(parts)
    if token:
        with pytest.raises(InvalidToken):
            await TOKENS(token)


@given(header=st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64"]), values), claims=values)
async def test_unsigned_garbage_is_refused(header: dict[str, Any], claims: Any) -> None:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), b"x"]
    with pytest.raises(InvalidToken):
        await TOKENS(".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts))


@given(claims=st.dictionaries(names, values))
async def test_signed_garbage_is_an_identity_or_refused(claims: dict[str, Any]) -> None:
    tokens = JWT(SECRET, algorithms=["HS256"], subscriptions=True, leeway=10)
    # The library does not sign an issuer that is not a str.
    with suppress(InvalidToken, TypeError):
        identity = await tokens(sign(claims))
        assert identity.user == (claims.get("sub") or None)
        assert all(isinstance(channel, str) for channel in identity.channels)
        assert identity.expires_at is None or identity.expires_at > time.time() - DEADLINE


# Subscription tokens


@pytest.mark.parametrize(
    ("claims", "subscription"),
    [
        ({}, SubscriptionToken(None, None, None)),
        ({"exp": 4_000_000_000}, SubscriptionToken(4_000_000_000, None, None)),
        ({"exp": 4_000_000_000, "expire_at": 0}, SubscriptionToken(None, None, None)),
        ({"info": {"a": 1}, "data": [2]}, SubscriptionToken(None, {"a": 1}, [2])),
        ({"b64info": "MQ==", "b64data": "Mg=="}, SubscriptionToken(None, 1, 2)),
        ({"client": "c1"}, SubscriptionToken(None, None, None)),
        ({"client": ""}, SubscriptionToken(None, None, None)),
    ],
)
async def test_a_subscription_token(claims: dict[str, Any], subscription: SubscriptionToken) -> None:
    token = sign({"sub": "7", "channel": "room:1", **claims})
    assert await TOKENS.verify_subscription(token, channel="room:1", user=7, connection="c1") == subscription


@pytest.mark.parametrize(
    ("claims", "error"),
    [
        ({"sub": "ann", "channel": "room:2"}, ForeignToken),
        ({"sub": "bob", "channel": "room:1"}, ForeignToken),
        ({"sub": "", "channel": "room:1"}, ForeignToken),
        ({"channel": "room:1"}, ForeignToken),
        ({"sub": "ann", "channel": ["room:1"]}, ForeignToken),
        ({"sub": "ann", "channel": None}, ForeignToken),
        ({"sub": "ann", "channel": "room:1", "client": "c2"}, ForeignToken),
        ({"sub": "ann", "channel": "room:1", "client": 7}, ForeignToken),
        ({"sub": "ann", "channel": "room:1", "exp": 1}, ExpiredToken),
        ({"sub": "ann", "channel": "room:1", "expire_at": 1}, ExpiredToken),
        ({"sub": "ann"}, InvalidToken),
        ({"sub": "ann", "channel": "room:1", "b64data": "?"}, InvalidToken),
    ],
)
async def test_a_wrong_subscription_token(claims: dict[str, Any], error: type[InvalidToken]) -> None:
    with pytest.raises(InvalidToken) as caught:
        await TOKENS.verify_subscription(sign(claims), channel="room:1", user="ann", connection="c1")
    assert type(caught.value) is error


async def test_a_subscription_token_of_a_connection_without_a_user() -> None:
    for claims in ({"channel": "news"}, {"channel": "news", "sub": ""}):
        assert await TOKENS.verify_subscription(sign(claims), channel="news", user=None)
        assert await TOKENS.verify_subscription(sign(claims), channel="news", user="")
    with pytest.raises(ForeignToken):
        await TOKENS.verify_subscription(sign({"channel": "news", "sub": "ann"}), channel="news", user=None)
    with pytest.raises(ForeignToken):
        await TOKENS.verify_subscription(sign({"channel": "news", "client": "c"}), channel="news", user=None)


# JWKS


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setattr(jwks, "TIMEOUT", DEADLINE)
    with provider() as state:
        state.keys = [jwk(rsa_key(1), "one"), jwk(ec_key(), "two")]
        yield state


async def test_keys_of_a_provider(server: Provider) -> None:
    tokens = JWT(server.url, algorithms=["RS256", "ES256"], audience="chat", required=True)
    claims = {"sub": "ann", "aud": "chat"}
    assert (await tokens(sign(claims, rsa_key(1), "RS256", kid="one"))).user == "ann"
    assert (await tokens(sign(claims, ec_key(), "ES256", kid="two"))).user == "ann"
    assert (await tokens(sign(claims, ec_key(), "ES256"))).user == "ann"
    for wrong in [
        sign(claims, rsa_key(2), "RS256", kid="one"),
        sign(claims, rsa_key(1), "RS256", kid="two"),
        sign(claims, rsa_key(1), "RS256", kid="three"),
        sign({"sub": "ann", "aud": "shop"}, rsa_key(1), "RS256", kid="one"),
        sign({"sub": "ann"}, rsa_key(1), "RS256", kid="one"),
    ]:
        with pytest.raises(InvalidToken):
            await tokens(wrong)
    assert server.requests == 1


async def test_garbage_causes_no_fetch(server: Provider) -> None:
    tokens = JWT(server.url, algorithms=["RS256"], audience="chat")
    assert await tokens(None) == Identity()
    for garbage in ["x", "a.b.c", sign({}), sign({}, ec_key(), "ES256", kid="two"), "x" * (MAX_TOKEN + 1)]:
        with pytest.raises(InvalidToken):
            await tokens(garbage)
    assert server.requests == 0


async def test_a_provider_that_is_away_does_not_make_a_token_wrong(server: Provider) -> None:
    server.status = 500
    tokens = JWT(server.url, algorithms=["RS256"], audience="chat")
    with pytest.raises(KeysUnavailable):
        await tokens(sign({"aud": "chat"}, rsa_key(1), "RS256", kid="one"))


# Wrong arguments


@pytest.mark.parametrize(
    ("key", "options", "error", "message"),
    [
        (SECRET, {}, TypeError, "algorithms"),
        (SECRET, {"algorithms": ["none"]}, ValueError, "Expected algorithms that sign"),
        (SECRET, {"algorithms": ["HS256", "RS256"]}, ValueError, "Make a JWT for each kind"),
        ("", {"algorithms": ["HS256"]}, ValueError, "Expected a secret, but got an empty one"),
        (SECRET, {"algorithms": ["HS256"], "audience": ""}, ValueError, "Use None to check none."),
        (SECRET, {"algorithms": ["HS256"], "audience": []}, ValueError, "Expected audience to be a name"),
        (SECRET, {"algorithms": ["HS256"], "audience": 7}, TypeError, "Expected audience as str"),
        (SECRET, {"algorithms": ["HS256"], "issuer": [7]}, TypeError, "Expected issuer as str"),
        (SECRET, {"algorithms": ["HS256"], "issuer": b"x"}, TypeError, "Expected issuer as str"),
        (
            SECRET,
            {"algorithms": ["HS256"], "leeway": -1},
            ValueError,
            "Expected leeway from 0 to 300 seconds",
        ),
        (SECRET, {"algorithms": ["HS256"], "leeway": 301}, ValueError, "but got 301"),
        (SECRET, {"algorithms": ["HS256"], "leeway": float("nan")}, ValueError, "Expected leeway from"),
        (SECRET, {"algorithms": ["HS256"], "leeway": "1"}, TypeError, "Expected leeway as a number"),
        (
            SECRET,
            {"algorithms": ["HS256"], "required": 1},
            TypeError,
            "Expected required as True, False or None",
        ),
        (SECRET, {"algorithms": ["HS256"], "subscriptions": None}, TypeError, "Expected subscriptions as"),
        ("https://id/keys", {"algorithms": ["RS256"]}, ValueError, 'Write audience="…"'),
        ("https://id/keys", {"algorithms": ["HS256"], "audience": "a"}, ValueError, "whose keys are public"),
        ("http://id/keys", {"algorithms": ["RS256"], "audience": "a"}, ValueError, "with https"),
    ],
)
def test_wrong_arguments_are_refused_without_showing_the_key(
    key: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        JWT(key, **options)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


def test_its_repr_shows_no_key() -> None:
    assert repr(TOKENS) == "<JWT HS256 key>"
    tokens = JWT("https://id.example.com/s3cret?k=s3cret", algorithms=["RS256", "ES256"], audience="a")
    assert repr(tokens) == "<JWT RS256/ES256 id.example.com>"


async def test_a_warning_that_the_application_makes_an_error_is_about_the_key() -> None:
    # pytest makes warnings errors here, and the library warns of a short secret.
    with pytest.raises(Warning, match="HMAC key"):
        await JWT("short", algorithms=["HS256"])(sign({"sub": "ann"}))


# FastAPI

REQUIRED = JWT(SECRET, algorithms=["HS256"], required=True)
app = FastAPI()


@app.get("/me")
async def me(identity: Annotated[Identity, Depends(REQUIRED)]) -> str | None:
    return identity.user


@app.get("/public")
async def public(identity: Annotated[Identity, Depends(TOKENS)]) -> str | None:
    return identity.user


@app.websocket("/ws")
async def ws(websocket: WebSocket, identity: Annotated[Identity, Depends(REQUIRED)]) -> None:
    await websocket.accept()
    await websocket.send_json(identity.user)
    await websocket.close()


def test_it_is_a_dependency_of_routes() -> None:
    client = TestClient(app)
    token = sign({"sub": "ann"})
    assert client.get("/me", headers={"Authorization": f"Bearer {token}"}).json() == "ann"
    assert client.get(f"/me?token={token}").json() == "ann"
    assert client.get("/public").json() is None
    for url, detail in (
        ("/me", "no token"),
        ("/me?token=x", "invalid token"),
        ("/public?token=x", "invalid token"),
    ):
        answer = client.get(url)
        assert (answer.status_code, answer.json()) == (401, {"detail": detail})
        assert answer.headers["www-authenticate"] == "Bearer"
    assert app.openapi()["paths"]["/me"]["get"]["security"] == [{"ConnectToken": []}]


def test_it_is_a_dependency_of_websockets() -> None:
    client = TestClient(app)
    with client.websocket_connect(f"/ws?token={sign({'sub': 'ann'})}") as socket:
        assert socket.receive_json() == "ann"


def test_it_can_be_overridden() -> None:
    app.dependency_overrides[REQUIRED] = lambda: Identity(user="test")
    try:
        assert TestClient(app).get("/me").json() == "test"
    finally:
        app.dependency_overrides.clear()


def test_the_applications_handler_for_http_exceptions_gets_its_refusals() -> None:
    assert issubclass(InvalidToken, HTTPException)
    assert issubclass(KeysUnavailable, HTTPException)
