"""What clients send, kept out of the server's log, or made harmless there.

A URL may hold a token, since browsers cannot set headers on a WebSocket or an EventSource, and uvicorn logs
the URL of each request. A client's address may be any text, since a proxy passes it on in a header.
"""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote_plus

#: uvicorn's loggers that are given what clients send.
LOGGERS = ("uvicorn.access", "uvicorn.error", "uvicorn.asgi")

#: Query parameters whose values are secret.
SECRETS = ("token", "cf_connect")

#: Characters of one value that are logged.
LONGEST = 1000

#: Set in the task of a client that Hubbub refuses with a line of its own: information that the server would
#: log about it is left out.
is_reported: ContextVar[bool] = ContextVar("hubbub_is_reported", default=False)

# Starlette divides a query at "&" only.
_PARAMETER = re.compile(r"(?<=[?&])([^=&\s]+)=[^&\s]*")


class ClientText(logging.Filter):
    """Replaces secret values in logged URLs, escapes control characters, and shortens what is too long."""

    def filter(self, record: logging.LogRecord) -> bool:
        if is_reported.get() and record.levelno < logging.WARNING:
            return False
        if isinstance(record.args, tuple):
            record.args = tuple(
                [_harmless_scope(arg) if isinstance(arg, dict) else _harmless(arg) for arg in record.args]
            )
        return True


_FILTER = ClientText()


def protect_logs() -> None:
    """Put the filter on uvicorn's loggers, whatever has started uvicorn; more than once is once."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)


def _harmless(arg: Any) -> Any:
    if not isinstance(arg, str):
        return arg
    if "=" in arg:
        arg = _PARAMETER.sub(_without_secret, arg)
    if len(arg) > LONGEST:
        arg = f"{arg[:LONGEST]}… ({len(arg)} characters)"
    if not arg.isprintable():
        arg = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in arg
        )
    return arg


def _harmless_scope(scope: dict[str, Any]) -> dict[str, Any]:
    """An ASGI scope, which uvicorn logs at the level "trace"."""
    query = scope.get("query_string")
    if not isinstance(query, bytes):
        return scope
    harmless = _PARAMETER.sub(_without_secret, f"?{query.decode('latin-1')}")
    return {**scope, "query_string": harmless.removeprefix("?")}


def _without_secret(match: re.Match[str]) -> str:
    return f"{match[1]}=…" if unquote_plus(match[1]) in SECRETS else match[0]
