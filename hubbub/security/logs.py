"""Logs: text from clients is removed from the server's log, or made harmless there.

A URL may contain a token, because browsers cannot set headers on a WebSocket or an EventSource, and uvicorn
logs the URL of each request. At the levels "debug" and "trace" it also logs headers, subprotocols and, with
its own WebSocket protocol, messages. A client's address may be any text, because a proxy passes it on in a
header.
"""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote_plus

from websockets.frames import Frame

#: uvicorn's loggers whose records contain text from clients.
LOGGERS = ("uvicorn.access", "uvicorn.error", "uvicorn.asgi")

#: Query parameters whose values are secret.
SECRETS = ("token", "cf_connect")

#: Headers whose values are secret.
SECRET_HEADERS = ("authorization", "cookie", "proxy-authorization", "set-cookie")

#: Characters of one value that are logged.
LONGEST = 1000

#: Set in the task of a client whose refusal Hubbub logs itself: the server's records about the client below
#: the level "warning" are dropped.
is_reported: ContextVar[bool] = ContextVar("hubbub_is_reported", default=False)

# Starlette divides a query at "&" only.
_PARAMETER = re.compile(r"(?<=[?&])([^=&\s]+)=[^&\s]*")
# In the header Sec-WebSocket-Protocol; see hubbub.security.tokens.
_SUBPROTOCOL = re.compile(r"(hubbub\.token\.)[^\s,'\"]+")


class ClientText(logging.Filter):
    """Replaces secret values in logged URLs, escapes control characters, and shortens long values."""

    def filter(self, record: logging.LogRecord) -> bool:
        if is_reported.get() and record.levelno < logging.WARNING:
            return False
        if isinstance(record.args, tuple):
            record.args = _harmless_header(*record.args) or tuple([_harmless(arg) for arg in record.args])
        return True


_FILTER = ClientText()


def protect_logs() -> None:
    """Put the filter on uvicorn's loggers. A second call has no effect."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)


def _harmless_header(*args: Any) -> tuple[str, str] | None:
    """Return name and value of a header without the value, if they are the arguments and it is secret."""
    match args:
        case (str() as name, str()) if name.lower() in SECRET_HEADERS:
            return name, "…"
    return None


def _harmless(arg: Any) -> Any:
    match arg:
        case str():
            return _harmless_text(arg)
        case dict():
            return _harmless_scope(arg)
        # The library logs the beginning and the end of each message; a refresh has a token.
        case Frame() if b"token" in bytes(arg.data):
            return f"{arg.opcode.name} [{len(arg.data)} bytes with a token]"
    return arg


def _harmless_text(text: str) -> str:
    if "=" in text:
        text = _PARAMETER.sub(_without_secret, text)
    text = _SUBPROTOCOL.sub(r"\1…", text)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}… ({len(text)} characters)"
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
        )
    return text


def _harmless_scope(scope: dict[str, Any]) -> dict[str, Any]:
    """Return an ASGI scope or message without secrets; uvicorn logs them at the level "trace"."""
    harmless = dict(scope)
    if isinstance(query := scope.get("query_string"), bytes):
        text = _PARAMETER.sub(_without_secret, f"?{query.decode('latin-1')}")
        harmless["query_string"] = text.removeprefix("?")
    if isinstance(headers := scope.get("headers"), list | tuple):
        harmless["headers"] = [_harmless_pair(header) for header in headers]
    if isinstance(subprotocols := scope.get("subprotocols"), list | tuple):
        harmless["subprotocols"] = [_harmless(each) for each in subprotocols]
    return harmless


def _harmless_pair(header: Any) -> Any:
    """Return a header of an ASGI scope, which is a pair of ``bytes``, without a secret value."""
    match header:
        case (bytes() as name, bytes() as value):
            pair = name.decode("latin-1"), value.decode("latin-1")
            return _harmless_header(*pair) or (pair[0], _harmless_text(pair[1]))
    return header


def _without_secret(match: re.Match[str]) -> str:
    return f"{match[1]}=…" if unquote_plus(match[1]) in SECRETS else match[0]
