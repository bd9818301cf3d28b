"""Keys for tests, and the tokens that they sign."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SECRET = "a secret with more than the sixty-four bytes that HS512 asks for, in a test"

PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@cache
def rsa_key(number: int = 1, bits: int = 2048) -> rsa.RSAPrivateKey:
    """One of several keys, made once: making one takes long."""
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(number: int = 1, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(key: PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(key: PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def jwk(key: PrivateKey, kid: str | None = None, **fields: Any) -> dict[str, Any]:
    """The public part of ``key`` as an entry of a JWKS."""
    match key:
        case rsa.RSAPrivateKey():
            entry = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
        case ec.EllipticCurvePrivateKey():
            entry = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
        case _:
            entry = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key()))
    # PyJWT writes the operations of the key that it was given.
    entry.pop("key_ops", None)
    return {**entry, **({} if kid is None else {"kid": kid}), **fields}


def sign(
    claims: dict[str, Any], key: PrivateKey | str = SECRET, algorithm: str = "HS256", **headers: Any
) -> str:
    return jwt.encode(claims, key, algorithm, headers=headers or None)
