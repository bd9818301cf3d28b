"""Keys: checks of the secrets and public keys that verify tokens, and of their algorithms.

A public key is no secret. If it were taken for one, as a token with the algorithm ``HS256`` asks for,
everyone could sign tokens with it; so algorithms with a secret and those with a public key are never mixed
(:rfc:`8725#section-2.1`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import InvalidKeyError, get_algorithm_by_name

logger = logging.getLogger(__name__)

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

#: Algorithms with a secret, and the bytes that it should have at least (:rfc:`7518#section-3.2`).
SECRET_ALGORITHMS = {"HS256": 32, "HS384": 48, "HS512": 64}
#: Algorithms with an elliptic curve, and its name (:rfc:`7518#section-3.4`, :rfc:`8812#section-3.2`).
_CURVES = {"ES256": "secp256r1", "ES256K": "secp256k1", "ES384": "secp384r1", "ES512": "secp521r1"}
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
#: Bits that an RSA key has at least (:rfc:`7518#section-3.3`).
MIN_RSA_BITS = 2048

ALGORITHMS = (*SECRET_ALGORITHMS, *_RSA, *_CURVES, "EdDSA")

#: The beginning of a key in a text form: PEM, or a public key of OpenSSH.
_TEXT_KEYS = ("-----BEGIN", "ssh-", "ecdsa-sha2-")


def check_algorithms(algorithms: Iterable[str]) -> tuple[str, ...]:
    """Check the parameter ``algorithms`` of a verifier of tokens.

    :raises TypeError: it is not a list of names.
    :raises ValueError: it is empty, names an algorithm that does not exist or signs nothing, or mixes
        algorithms with a secret and algorithms with a public key.
    """
    if isinstance(algorithms, str) or not isinstance(algorithms, Iterable):
        raise TypeError(f'Expected algorithms as a list, such as ["HS256"], but got {algorithms!r}.')
    names = tuple(dict.fromkeys(algorithms))
    if not names:
        raise ValueError('Expected at least one algorithm, but got none. Write algorithms=["HS256"].')
    for name in names:
        if isinstance(name, str) and name.lower() == "none":
            raise ValueError(
                "Expected algorithms that sign, but got 'none': every client could then name any user. Name "
                "the "
                'algorithm of your tokens, such as algorithms=["HS256"].'
            )
        if name not in ALGORITHMS:
            raise ValueError(f"Expected algorithms among {', '.join(ALGORITHMS)}, but got {name!r}.")
    with_secret = [name for name in names if name in SECRET_ALGORITHMS]
    if with_secret and len(with_secret) < len(names):
        raise ValueError(
            f"Expected algorithms of one kind, but got {list(names)}: {with_secret[0]} needs a secret, the "
            "others a public key, and a public key must not count as a secret. Make a JWT for each kind."
        )
    return names


def parse_key(key: str | bytes | PublicKey, algorithms: tuple[str, ...]) -> bytes | PublicKey:
    """Check the key of a verifier of tokens, and return it ready for use.

    No error message contains any of ``key``.

    :param key: a secret, a public key in PEM, or a public key.
    :param algorithms: from :func:`check_algorithms`.
    :raises TypeError: it is neither text nor a public key.
    :raises ValueError: it is not a key for each of the algorithms.
    """
    text = key.decode("latin-1") if isinstance(key, bytes) else key
    is_text_key = isinstance(text, str) and text.lstrip().startswith(_TEXT_KEYS)
    if algorithms[0] in SECRET_ALGORITHMS:
        if is_text_key or not isinstance(key, str | bytes):
            raise ValueError(
                f"Expected a secret for {algorithms[0]}, but got a key of another kind, which may be public. "
                'Name its algorithm, such as algorithms=["RS256"], or pass the secret.'
            )
        return _parse_secret(key, algorithms)
    if isinstance(key, str | bytes):
        key = _parse_pem(key, is_text_key, algorithms[0])
    if not isinstance(key, PublicKey):
        raise TypeError(
            f"Expected a public key for {algorithms[0]}, in PEM or from cryptography, but got "
            f"{type(key).__name__}."
            + (" Pass key.public_key(): the private key is for signing only." if _is_private(key) else "")
        )
    for algorithm in algorithms:
        if not fits(key, algorithm):
            raise ValueError(
                f"Expected a key for {algorithm}, but got {_describe(key)}. Name only algorithms of this key."
            )
    return key


def fits(key: PublicKey, algorithm: str) -> bool:
    """Whether ``key`` verifies tokens with ``algorithm``, and is long enough."""
    match key:
        case RSAPublicKey():
            return algorithm in _RSA and key.key_size >= MIN_RSA_BITS
        case EllipticCurvePublicKey():
            return _CURVES.get(algorithm) == key.curve.name
    return algorithm == "EdDSA"


def _parse_secret(key: str | bytes, algorithms: tuple[str, ...]) -> bytes:
    secret = key.encode() if isinstance(key, str) else key
    if not secret.strip():
        raise ValueError(
            "Expected a secret, but got an empty one. Is the setting that it comes from missing? To make "
            "one, run: python -c 'import secrets; print(secrets.token_urlsafe(48))'"
        )
    try:
        get_algorithm_by_name(algorithms[0]).prepare_key(secret)
    except InvalidKeyError:
        # It would refuse every token. Its message may quote the key.
        raise ValueError(
            f"Expected a secret for {algorithms[0]}, but got a key in a form that may be public, such as a "
            "JWK."
        ) from None
    least = max(SECRET_ALGORITHMS[algorithm] for algorithm in algorithms)
    if len(secret) < least:
        logger.warning(
            "The secret for tokens has %d bytes, and should have at least %d for %s (RFC 7518, section "
            "3.2): a short one can be guessed by anyone with a token. To make one, run: python -c 'import "
            "secrets; print(secrets.token_urlsafe(48))'",
            len(secret),
            least,
            algorithms[-1],
        )
    return secret


def _parse_pem(key: str | bytes, is_text_key: bool, algorithm: str) -> PublicKey:
    data = key.encode() if isinstance(key, str) else key
    if b"PRIVATE KEY" in data:
        raise ValueError(
            f"Expected a public key for {algorithm}, but got a private one, which is for signing only. Pass "
            "the public key that belongs to it."
        )
    try:
        return load_pem_public_key(data)  # type: ignore[return-value]  # the caller checks its kind
    except Exception:
        # The library's message may quote the key.
        raise ValueError(
            f"Expected a public key in PEM for {algorithm}, which begins with '-----BEGIN PUBLIC KEY-----', "
            "or the https URL of a JWKS, but got "
            f"{'another kind of key' if is_text_key else 'a text that is neither'}."
        ) from None


def _is_private(key: object) -> bool:
    return hasattr(key, "private_bytes")


def _describe(key: PublicKey) -> str:
    match key:
        case RSAPublicKey():
            least = f" (at least {MIN_RSA_BITS} are safe)" if key.key_size < MIN_RSA_BITS else ""
            return f"an RSA key of {key.key_size} bits{least}"
        case EllipticCurvePublicKey():
            return f"a key on the curve {key.curve.name}"
    return "an EdDSA key"
