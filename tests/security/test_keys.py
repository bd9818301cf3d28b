"""Keys and algorithms that do not belong together are refused when they are given, without being shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from hubbub.security.keys import check_algorithms, fits, parse_key
from tests.security.signing import SECRET, ec_key, ed_key, jwk, private_pem, public_pem, rsa_key


@pytest.mark.parametrize(
    ("algorithms", "message"),
    [
        ("HS256", "Expected algorithms as a list, such as [\"HS256\"], but got 'HS256'."),
        (None, "Expected algorithms as a list"),
        ([], 'Write algorithms=["HS256"].'),
        (["none"], "Expected algorithms that sign, but got 'none'"),
        (["HS256", "None"], "Expected algorithms that sign"),
        (["RS255"], "Expected algorithms among HS256, HS384, HS512, RS256"),
        ([None], "Expected algorithms among"),
        (["RS256", "HS256"], "a public key must not count as a secret"),
        (["HS256", "EdDSA"], "Make a JWT for each kind."),
    ],
)
def test_wrong_algorithms_are_refused(algorithms: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        check_algorithms(algorithms)
    assert message in str(caught.value)


def test_algorithms_of_one_kind_may_be_several() -> None:
    assert check_algorithms(["HS256", "HS512", "HS256"]) == ("HS256", "HS512")
    assert check_algorithms(iter(("RS256", "ES256"))) == ("RS256", "ES256")


@pytest.mark.parametrize(
    ("key", "algorithms"),
    [
        (SECRET, ["HS256", "HS512"]),
        (SECRET.encode(), ["HS384"]),
        (public_pem(rsa_key()), ["RS256", "PS512"]),
        (public_pem(rsa_key()).encode(), ["RS512"]),
        (rsa_key().public_key(), ["RS256"]),
        (public_pem(ec_key()), ["ES256"]),
        (ec_key(1, ec.SECP384R1).public_key(), ["ES384"]),
        (ec_key(1, ec.SECP521R1).public_key(), ["ES512"]),
        (ec_key(1, ec.SECP256K1).public_key(), ["ES256K"]),
        (public_pem(ed_key()), ["EdDSA"]),
    ],
)
def test_keys_of_each_kind(key: Any, algorithms: list[str]) -> None:
    parsed = parse_key(key, check_algorithms(algorithms))
    if isinstance(parsed, bytes):
        assert parsed == SECRET.encode()
    else:
        assert all(fits(parsed, algorithm) for algorithm in algorithms)


@pytest.mark.parametrize(
    ("key", "algorithms", "message"),
    [
        ("", ["HS256"], "Is the setting that it comes from missing?"),
        ("  \n", ["HS256"], "secrets.token_urlsafe"),
        (b"", ["HS256"], "Expected a secret, but got an empty one."),
        (None, ["HS256"], "Expected a secret for HS256"),
        (public_pem(rsa_key()), ["HS256"], "which may be public"),
        ("\n" + public_pem(ec_key()), ["HS512"], "which may be public"),
        (rsa_key().public_key(), ["HS256"], "which may be public"),
        (json.dumps(jwk(rsa_key())), ["HS256"], "such as a JWK"),
        (SECRET, ["RS256"], "but got a text that is neither."),
        (SECRET, ["EdDSA"], "-----BEGIN PUBLIC KEY-----"),
        ("-----BEGIN PUBLIC KEY-----\nxxxx\n-----END PUBLIC KEY-----", ["RS256"], "Expected a public key"),
        ("ssh-ed25519 AAAA", ["EdDSA"], "another kind of key"),
        (private_pem(rsa_key()), ["RS256"], "a private one, which is for signing only"),
        (rsa_key(), ["RS256"], "Pass key.public_key()"),
        (12, ["RS256"], "but got int."),
        (x25519.X25519PrivateKey.generate().public_key(), ["EdDSA"], "Expected a public key for EdDSA"),
        (public_pem(rsa_key()), ["ES256"], "but got an RSA key of 2048 bits."),
        (public_pem(rsa_key(1, 1024)), ["RS256"], "an RSA key of 1024 bits (at least 2048 are safe)"),
        (public_pem(ec_key(1, ec.SECP384R1)), ["ES256"], "but got a key on the curve secp384r1."),
        (public_pem(ec_key()), ["ES256", "ES384"], "Name only algorithms of this key."),
        (public_pem(ec_key()), ["RS256"], "a key on the curve"),
        (ed_key().public_key(), ["RS256"], "but got an EdDSA key."),
    ],
)
def test_keys_that_do_not_fit_are_refused_without_being_shown(
    key: Any, algorithms: list[str], message: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        parse_key(key, check_algorithms(algorithms))
    error = caught.value
    assert message in str(error)
    # Nor does a traceback show it.
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    if isinstance(key, str) and len(key.strip()) > 20:
        assert key.split()[-1][:20] not in str(error).replace("-----BEGIN PUBLIC KEY-----", "")


def test_a_short_secret_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    parse_key("topsecret", ("HS256", "HS384"))
    assert "has 9 bytes, and should have at least 48 for HS384" in caplog.text
    assert "topsecret" not in caplog.text
    caplog.clear()
    parse_key(SECRET, ("HS512",))
    assert not caplog.text
