"""Logs: text from clients is removed from the server's log, or made harmless there.

A URL may contain a token, because browsers cannot set headers on a WebSocket or an EventSource, and uvicorn
logs the URL of each request. A client's address may be any text, because a proxy passes it on in a header.
"""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote_plus

#: uvicorn's loggers whose records contain text from clients.
LOGGERS = ("uvicorn.access", "uvicorn.error", "uvicorn.asgi")

#: Query parameters whose values are secret.
SECRETS = ("token", "cf_connect")

#: Characters of one value that are logged.
LONGEST = 1000

#: Set in the task of a client whose refusal Hubbub logs itself: the server's records about the client below
#: the level "warning" are dropped.
is_reported: ContextVar[bool] = ContextVar("hubbub_is_reported", default=False)

# Starlette divides a query at "&" only.
_PARAMETER = re.compile(r"(?<=[?&])([^=&\s]+)=[^&\s]*")


class ClientText(logging.Filter):
    """Replaces secret values in logged URLs, escapes control characters, and shortens long values."""

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
    """Put the filter on uvicorn's loggers. A second call has no effect."""
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
    """Return an ASGI scope without secrets; uvicorn logs scopes at the level "trace"."""
    query = scope.get("query_string")
    if not isinstance(query, bytes):
        return scope
    harmless = _PARAMETER.sub(_without_secret, f"?{query.decode('latin-1')}")
    return {**scope, "query_string": harmless.removeprefix("?")}


def _without_secret(match: re.Match[str]) -> str:
    return f"{match[1]}=…" if unquote_plus(match[1]) in SECRETS else match[0]
