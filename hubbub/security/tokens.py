"""Tokens: the connect token of a request, and the refusals of a wrong one.

A browser cannot set headers on a WebSocket or an EventSource, so there are three places for the token.
"""

# No postponed annotations: FastAPI reads those of a dependency that is an object as they are.
import re
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, TypeAlias
from urllib.parse import quote_plus, unquote_plus

from fastapi import Depends, HTTPException
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection

#: The subprotocol that the server selects, and the beginning of the one that carries a token.
SUBPROTOCOL = "hubbub"
TOKEN_SUBPROTOCOL = "hubbub.token."

#: The query parameter that carries a token.
PARAMETER = "token"

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


class InvalidToken(HTTPException):
    """A token is refused, with 401. Its message never contains the token."""

    message: ClassVar[str] = "invalid token"

    def __init__(self) -> None:
        super().__init__(401, self.message, headers={"WWW-Authenticate": "Bearer"})


class ExpiredToken(InvalidToken):
    """The token was right, and has expired."""

    message = "token expired"


class ForeignToken(InvalidToken):
    """The token is signed, but for another user, channel or connection."""

    message = "token of another user or channel"


class MissingToken(InvalidToken):
    """There is no token where one is required."""

    message = "no token"


class ConnectTokenScheme(HTTPBearer):
    """Finds the connect token of a request; :data:`ConnectToken` is its result.

    The first of these that has a token counts:

    1. the header ``Authorization: Bearer …``;
    2. the subprotocol ``hubbub.token.…``, with the token in base64url without padding
       (:rfc:`4648#section-5`);
    3. the query parameter ``token``.

    As a security scheme of FastAPI, it appears in the OpenAPI document of the routes that depend on it.

    :raises InvalidToken: the subprotocol is not the base64url of a text.
    """

    async def __call__(self, connection: HTTPConnection) -> str | None:  # type: ignore[override]
        credentials = await super().__call__(connection)
        if credentials is not None:
            return credentials.credentials
        for subprotocol in connection.scope.get("subprotocols", ()):
            if subprotocol.startswith(TOKEN_SUBPROTOCOL) and subprotocol != TOKEN_SUBPROTOCOL:
                return _decode(subprotocol.removeprefix(TOKEN_SUBPROTOCOL))
        # Starlette keeps the last of several values; an empty one is none.
        return connection.query_params.get(PARAMETER) or None


connect_token = ConnectTokenScheme(
    scheme_name="ConnectToken",
    description=(
        "The connect token. Browsers, which cannot set headers on a WebSocket or an EventSource, send it as "
        "the subprotocol hubbub.token.<base64url>, beside the subprotocol hubbub, or as the query parameter "
        "token."
    ),
    auto_error=False,
)

#: The connect token of a request, or ``None``. Use it as it is: ``ConnectToken | None`` is no dependency.
ConnectToken: TypeAlias = Annotated[str | None, Depends(connect_token)]


def select_subprotocol(offered: Sequence[str]) -> str | None:
    """Return the subprotocol to accept: ``hubbub`` if it is offered, and never the one with the token.

    :param offered: ``scope["subprotocols"]`` of a WebSocket.
    """
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def with_token(scope: dict[str, Any], token: str) -> dict[str, Any]:
    """Return a copy of an ASGI scope with another connect token, as if the client had connected with it.

    All places of the old token are changed, so that an application that reads one of them by itself does not
    find the old token.

    :param token: from the client, in a refresh.
    :raises InvalidToken: a header cannot hold the token.
    """
    if not token or not (token.isascii() and token.isprintable()):
        raise InvalidToken
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"authorization"]
    copy = {**scope, "headers": [*headers, (b"authorization", b"Bearer " + token.encode())]}
    if "subprotocols" in scope:
        copy["subprotocols"] = [
            each for each in scope["subprotocols"] if not each.startswith(TOKEN_SUBPROTOCOL)
        ]
    parameters = scope.get("query_string", b"").decode("latin-1").split("&")
    for index, parameter in enumerate(parameters):
        if unquote_plus(parameter.partition("=")[0]) == PARAMETER:
            parameters[index] = f"{PARAMETER}={quote_plus(token)}"
    copy["query_string"] = "&".join(parameters).encode("latin-1")
    return copy


def _decode(encoded: str) -> str:
    # A token that cannot be read is a wrong one. As an absent one it would make the client anonymous.
    if not _BASE64URL.fullmatch(encoded):
        raise InvalidToken
    try:
        return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except ValueError:
        raise InvalidToken from None
