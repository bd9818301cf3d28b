"""Origins: the web pages that may connect.

A browser lets any page open a WebSocket to any server and sends the user's cookies along; only the server
can refuse (:rfc:`6455#section-10.2`). It recognizes the page by the ``Origin`` header, which scripts cannot
forge. Clients that are not browsers send no such header and are not affected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>([^\s/?#@:*,\[\]]+|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?)"
)
_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443"}


def parse_origins(origins: Iterable[str]) -> frozenset[str]:
    """Check and parse the parameter ``allow_origins``.

    :raises ValueError: an entry is not an origin, so that no browser could match it.
    """
    if isinstance(origins, str):
        raise ValueError(f"Expected allow_origins as a list of origins, but got the string {origins!r}.")
    if not isinstance(origins, Iterable):
        raise ValueError(f"Expected allow_origins as a list of origins, but got {origins!r}.")
    return frozenset(origin if origin in ("*", "null") else _parse(origin) for origin in origins)


def is_allowed(origin: str, host: str | None, allowed: frozenset[str]) -> bool:
    """Whether a page from ``origin`` may connect.

    :param origin: the request's ``Origin`` header.
    :param host: its ``Host`` header. The page's own server is always allowed; schemes are not compared,
        because behind a proxy that ends TLS the page says ``https`` and the server sees ``http``.
    :param allowed: from :func:`parse_origins`; ``*`` allows every page.
    """
    if "*" in allowed or is_named(origin, allowed):
        return True
    try:
        origin = _parse(origin)
    except ValueError:
        return False
    scheme, _, authority = origin.partition("://")
    return host is not None and authority == _without_default_port(host.lower(), scheme)


def is_named(origin: str, allowed: frozenset[str]) -> bool:
    """Whether ``origin`` itself is one of ``allowed``; ``*`` names no page.

    :param origin: the request's ``Origin`` header.
    :param allowed: from :func:`parse_origins`.
    """
    if origin == "*":
        return False
    if origin in allowed:
        return True
    try:
        return _parse(origin) in allowed
    except ValueError:
        return False


def _parse(origin: str) -> str:
    # An origin is a scheme, a host and perhaps a port (RFC 6454, section 7). A host has no wildcards, and
    # browsers send one that is not ASCII as "xn--…".
    match = (
        _ORIGIN.fullmatch(origin.strip().lower()) if isinstance(origin, str) and origin.isascii() else None
    )
    if match is None or int(match["port"] or 0) > 65535:
        raise ValueError(
            f"Expected an origin such as 'https://example.com' or 'http://localhost:5173', without a path "
            f"or a slash at the end, but got {origin!r}."
        )
    return f"{match['scheme']}://{_without_default_port(match['authority'], match['scheme'])}"


def _without_default_port(authority: str, scheme: str) -> str:
    host, colon, port = authority.rpartition(":")
    return host if colon and port == _DEFAULT_PORTS.get(scheme) else authority
