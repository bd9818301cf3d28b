"""JWT: verifies JSON Web Tokens (:rfc:`7519`) and tells the identity of a client from their claims.

The claims are those of Centrifugo, so that its tokens work here, and the tokens of its clients.
"""

# No postponed annotations: FastAPI reads those of a dependency that is an object as they are.
import json
import logging
import math
import time
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jwt

from hubbub.security.jwks import JWKS
from hubbub.security.keys import SECRET_ALGORITHMS, PublicKey, check_algorithms, parse_key
from hubbub.security.tokens import ConnectToken, ExpiredToken, ForeignToken, InvalidToken, MissingToken
from hubbub.types import Identity, User, user_id

logger = logging.getLogger(__name__)

#: Characters of a token. A longer one is refused before it is looked at.
MAX_TOKEN = 16_384
#: Seconds of ``leeway``.
MAX_LEEWAY = 300


@dataclass(frozen=True, slots=True)
class SubscriptionToken:
    """The contents of a subscription token.

    :param expires_at: the moment in which the subscription ends, in seconds since 1970; ``None``: never.
    :param info: of the connection in this channel, for presence.
    :param data: for the client, in the reply to its ``subscribe``.
    """

    expires_at: float | None
    info: Any
    data: Any


class JWT:
    """Verifies JSON Web Tokens.

    ::

        from typing import Annotated
        from fastapi import Depends

        tokens = JWT("a secret of at least 32 bytes, from a setting", algorithms=["HS256"], required=True)

        @app.get("/me")
        async def me(identity: Annotated[Identity, Depends(tokens)]) -> str | None:
            return identity.user

    ``hub.on_connect(tokens)`` has every client identified by its token. As a dependency of a route, a
    :class:`JWT` gives the :class:`~hubbub.Identity` too.

    ==================  ========================================================================
    claim               becomes
    ==================  ========================================================================
    ``sub``             ``user``; without it, or if it is ``""``, the client has no user
    ``info``            ``info``; ``b64info`` holds the same JSON in base64, and counts first
    ``exp``             ``expires_at``, with the leeway; the token is not accepted any more then
    ``expire_at``       ``expires_at`` in place of ``exp``; 0: the connection does not expire
    ``channels``        ``channels``, only with ``subscriptions=True``
    ``subs``            likewise, in place of ``channels``: an object whose keys are the channels
    ==================  ========================================================================

    The claims ``nbf``, ``iat``, ``aud``, ``iss`` and ``jti`` are checked (:rfc:`7519#section-4.1`): a token
    with ``aud`` is refused where no ``audience`` is given. A token with the claim ``channel`` is a
    subscription token, and does not identify a client.

    :param key: a secret; a public key, in PEM or as an object of ``cryptography``; or the URL of a JWKS, with
        ``https``, from which keys are fetched and kept.
    :param algorithms: those of the tokens, such as ``["HS256"]``. There is no default: a token must not
        choose.
    :param audience: the claim ``aud`` has to contain it, or one of several. Needed with a JWKS, because a
        provider signs the tokens of all its applications with the same keys.
    :param issuer: the claim ``iss`` has to be this, or one of several.
    :param leeway: seconds by which the clocks of the issuer and of this server may differ.
    :param required: whether a client without a token is refused; otherwise it is anonymous. By default, a
        connect token is not required, and a subscription token (``hub.channel(token=JWT(...))``) is.
    :param subscriptions: whether the claims ``channels`` and ``subs`` subscribe the client to declared
        channels.
    :raises TypeError: a parameter has the wrong type.
    :raises ValueError: the key does not fit the algorithms, or another parameter is out of range.
    """

    def __init__(
        self,
        key: str | bytes | PublicKey,
        *,
        algorithms: Iterable[str],
        audience: str | Iterable[str] | None = None,
        issuer: str | Iterable[str] | None = None,
        leeway: float = 0,
        required: bool | None = None,
        subscriptions: bool = False,
    ) -> None:
        self._algorithms = check_algorithms(algorithms)
        self._audience = _check_names("audience", audience)
        self._issuer = _check_names("issuer", issuer)
        self._leeway = _check_leeway(leeway)
        if not isinstance(required, bool | None):
            raise TypeError(f"Expected required as True, False or None, but got {required!r}.")
        if not isinstance(subscriptions, bool):
            raise TypeError(f"Expected subscriptions as True or False, but got {subscriptions!r}.")
        #: Whether a token has to be there; ``None``: for a subscription, and not to connect.
        self.required = required
        self._subscriptions = subscriptions
        self._key: bytes | PublicKey | None = None
        self._jwks: JWKS | None = None
        if isinstance(key, str) and key.strip().lower().startswith(("https:", "http:")):
            if self._algorithms[0] in SECRET_ALGORITHMS:
                raise ValueError(
                    f"Expected a secret for {self._algorithms[0]}, but got a URL, whose keys are public. "
                    "Name the "
                    'algorithm of the keys there, such as algorithms=["RS256"].'
                )
            if self._audience is None:
                raise ValueError(
                    "Expected an audience with the URL of a JWKS, but got none: its provider signs tokens "
                    "for other "
                    'applications with the same keys. Write audience="…", as in the claim aud of your tokens.'
                )
            self._jwks = JWKS(key.strip(), self._algorithms)
        else:
            self._key = parse_key(key, self._algorithms)

    def __repr__(self) -> str:
        keys = "key" if self._jwks is None else self._jwks.host
        return f"<JWT {'/'.join(self._algorithms)} {keys}>"

    async def __call__(self, token: ConnectToken) -> Identity:
        """Return the identity of a client, from its connect token.

        :param token: as FastAPI takes it from the request.
        :raises HTTPException: 401 if the token is wrong or expired, or if it is required and there is none;
            503 if the keys cannot be fetched.
        """
        if not token:
            if self.required:
                raise MissingToken
            return Identity()
        return self._identity(await self.verify(token))

    async def verify(self, token: str) -> dict[str, Any]:
        """Check signature, times, audience and issuer of ``token``, and return its claims.

        :raises HTTPException: 401 if the token is wrong or expired; 503 if the keys cannot be fetched.
        """
        if len(token) > MAX_TOKEN:
            raise InvalidToken
        key = self._key if self._jwks is None else await self._find_key(self._jwks, token)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,  # type: ignore[arg-type]
                algorithms=self._algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
            )
        except jwt.ExpiredSignatureError:
            raise ExpiredToken from None
        except Warning:
            # About the key; where the application has made warnings errors, this is not about the token.
            raise
        except Exception as exc:
            # Also an exception that the library does not foresee: a token is any text. Its message may quote
            # the token.
            logger.debug("Refused a token (%s).", type(exc).__name__)
            raise InvalidToken from None
        return claims

    async def verify_subscription(
        self, token: str, *, channel: str, user: User | None, connection: str | None = None
    ) -> SubscriptionToken:
        """Check a subscription token.

        :param token: with the claims ``sub``, ``channel``, ``client``, ``info``, ``data``, ``exp`` and
            ``expire_at``.
        :param channel: the name of the channel, which the claim ``channel`` has to be.
        :param user: of the connection, which the claim ``sub`` has to be; ``None`` if it has none, and then a
            claim ``sub`` has to be missing or ``""``.
        :param connection: the id of the connection, which a claim ``client`` has to be.
        :raises ExpiredToken: the token has expired.
        :raises ForeignToken: the token is for another user, channel or connection.
        :raises InvalidToken: the token is wrong in another way.
        :raises HTTPException: with 503, the keys cannot be fetched.
        """
        claims = await self.verify(token)
        if "channel" not in claims:
            # A connect token is signed by the same key.
            raise InvalidToken
        is_for_connection = claims.get("client") in (None, "", connection)
        wanted = (channel, "" if user is None else user_id(user))
        if (claims["channel"], claims.get("sub", "")) != wanted or not is_for_connection:
            raise ForeignToken
        return SubscriptionToken(
            expires_at=self._expires_at(claims), info=_json(claims, "info"), data=_json(claims, "data")
        )

    # Internal

    async def _find_key(self, jwks: JWKS, token: str) -> PublicKey:
        try:
            header = jwt.get_unverified_header(token)
        except Exception:
            # As in verify().
            raise InvalidToken from None
        # Before the keys are looked for: garbage must not cause a fetch.
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in self._algorithms or not isinstance(key_id, str | None):
            raise InvalidToken
        key = await jwks.find(key_id, algorithm)
        if key is None:
            logger.debug("Refused a token of a key that %s does not have.", jwks.host)
            raise InvalidToken
        return key

    def _identity(self, claims: dict[str, Any]) -> Identity:
        if "channel" in claims:
            # A subscription token, which is signed by the same key, must not open connections.
            raise InvalidToken
        channels = _channels(claims) if self._subscriptions else ()
        try:
            return Identity(
                user=claims.get("sub"),
                info=_json(claims, "info"),
                expires_at=self._expires_at(claims),
                channels=channels,
            )
        except (TypeError, ValueError):
            # A user that cannot be written as UTF-8.
            raise InvalidToken from None

    def _expires_at(self, claims: dict[str, Any]) -> float | None:
        moment = _moment(claims, "exp")
        if "expire_at" in claims:
            moment = _moment(claims, "expire_at")
            if moment == 0:
                return None
        if moment is None:
            return None
        moment += self._leeway
        if moment <= time.time():
            raise ExpiredToken
        return moment


def _channels(claims: dict[str, Any]) -> tuple[str, ...]:
    names: Any = claims.get("channels") or ()
    if claims.get("subs"):
        names = claims["subs"]
    if not isinstance(names, list | dict | tuple) or not all(isinstance(name, str) for name in names):
        raise InvalidToken
    return tuple(names)


def _json(claims: dict[str, Any], name: str) -> Any:
    """Return the value of a claim that is JSON, or of the one beside it that is JSON in base64."""
    encoded = claims.get(f"b64{name}")
    if not encoded:
        return claims.get(name)
    try:
        return json.loads(b64decode(encoded, validate=True))
    except (TypeError, ValueError, RecursionError):
        raise InvalidToken from None


def _moment(claims: dict[str, Any], name: str) -> float | None:
    """Return the value of a claim that is a moment, in seconds since 1970."""
    moment = claims.get(name)
    if moment is None:
        return None
    if not isinstance(moment, int | float) or isinstance(moment, bool) or moment < 0:
        raise InvalidToken
    try:
        seconds = float(moment)
    except OverflowError:
        raise InvalidToken from None
    if not math.isfinite(seconds):
        raise InvalidToken
    return seconds


def _check_names(name: str, names: str | Iterable[str] | None) -> list[str] | None:
    """Check an audience or an issuer, of which there may be several."""
    if names is None:
        return None
    if not isinstance(names, str | Iterable) or isinstance(names, bytes):
        raise TypeError(f"Expected {name} as str, or as a list of them, but got {names!r}.")
    listed = [names] if isinstance(names, str) else list(names)
    if not all(isinstance(each, str) for each in listed):
        raise TypeError(f"Expected {name} as str, or as a list of them, but got {names!r}.")
    if not listed or not all(listed):
        raise ValueError(f"Expected {name} to be a name, but got {names!r}. Use None to check none.")
    return listed


def _check_leeway(leeway: float) -> float:
    if not isinstance(leeway, int | float) or isinstance(leeway, bool):
        raise TypeError(f"Expected leeway as a number of seconds, but got {leeway!r}.")
    if not 0 <= leeway <= MAX_LEEWAY:
        raise ValueError(f"Expected leeway from 0 to {MAX_LEEWAY} seconds, but got {leeway!r}.")
    return leeway
