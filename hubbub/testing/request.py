"""The request of a test's client: its target, its headers, and the scope that a server makes of them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from secrets import token_bytes
from typing import Any, Literal
from urllib.parse import quote, unquote, urlencode

from fastapi.routing import iter_route_contexts
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Scope

from hubbub.routes.serving import PATH

#: The host that clients connect to, unless the test gives a header of its own.
HOST = "testserver"

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
Query = Mapping[str, str | int | Sequence[str]] | str

#: Headers of the handshake, which the client sets itself.
_OWN = frozenset({"connection", "sec-websocket-key", "sec-websocket-version", "upgrade"})
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN = re.compile(r"[\r\n\0]")
# Each client has its own, as on a server.
_ports = count(40_000)


def request_scope(
    kind: Literal["websocket", "http"],
    app: ASGIApp,
    state: dict[str, Any],
    *,
    channel: str | None,
    path: str | None,
    headers: Headers | None,
    cookies: Mapping[str, str] | None,
    query: Query | None,
    subprotocols: Sequence[str] = (),
) -> Scope:
    """Return the scope of a request, as uvicorn makes it.

    :param state: of the app's lifespan.
    :raises TypeError: a parameter has the wrong type.
    :raises ValueError: a parameter cannot be sent, or the app has no door for ``channel``.
    """
    if (channel is None) == (path is None):
        raise ValueError("Expected either a channel or path=…, but got both or neither.")
    if path is None:
        assert channel is not None
        path = door_path(kind, app, channel)
    raw_path, text = _target(path, query)
    fields = _fields(kind, headers, cookies, subprotocols)
    scope: Scope = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws" if kind == "websocket" else "http",
        "server": (HOST, 80),
        "client": ("127.0.0.1", next(_ports) % 65_536),
        "root_path": "",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("ascii"),
        "query_string": text.encode("ascii"),
        "headers": [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in fields],
        "state": state.copy(),
        "extensions": {},
    }
    if kind == "websocket":
        scope["subprotocols"] = list(subprotocols)
        scope["extensions"] = {"websocket.http.response": {}}
    else:
        scope["method"] = "GET"
    return scope


def door_path(kind: Literal["websocket", "http"], app: ASGIApp, channel: str) -> str:
    """Return the path of the door for ``channel``, with the prefix under which the app has the hub's router.

    :raises ValueError: the app has no such door, or several.
    """
    doors = set()
    for route in iter_route_contexts(getattr(app, "routes", ())):
        is_socket = isinstance(route.original_route, WebSocketRoute)
        is_kind = is_socket if kind == "websocket" else not is_socket and "GET" in (route.methods or ())
        if is_kind and route.path is not None and route.path.endswith(PATH):
            doors.add(route.path)
    if len(doors) != 1 or any("{" in door.removesuffix(PATH) for door in doors):
        raise ValueError(
            f"Expected an app with one door {PATH} behind a prefix without parameters, but got "
            f"{', '.join(sorted(doors)) or 'one without'}. Include the router of the hub, "
            "app.include_router(hub.router), or give the path of the endpoint, path=…"
        )
    prefix = doors.pop().removesuffix(PATH)
    # As encodeURIComponent does.
    return prefix + "/channels/" + quote(channel, safe="!~*'()")


def _target(path: str, query: Query | None) -> tuple[str, str]:
    if not isinstance(path, str) or not path.startswith("/") or "#" in path:
        raise ValueError(f"Expected a path that begins with '/' and has no '#', but got {path!r}.")
    path, _, own = path.partition("?")
    if query is not None and not isinstance(query, str):
        if any(value is None for value in query.values()):
            raise TypeError("Expected values for query as str or int, but got None. Leave the name out.")
        query = urlencode(query, doseq=True)
    # A percent sign stays: the path may be encoded already.
    raw_path = quote(path, safe="/%:@!$&'()*+,;=~")
    return raw_path, quote("&".join(filter(None, [own, query])), safe="/%:@!$&'()*+,;=~?")


def _fields(
    kind: str, headers: Headers | None, cookies: Mapping[str, str] | None, subprotocols: Sequence[str]
) -> list[tuple[str, str]]:
    """Return all header fields, those of the test behind those of every client."""
    given = list(headers.items() if isinstance(headers, Mapping) else headers or ())
    for name, value in given:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"Expected headers as str, but got {name!r}: {value!r}.")
        if not _TOKEN.fullmatch(name) or _FORBIDDEN.search(value):
            raise ValueError(f"Expected a header that can be sent, but got {name!r}: {value!r}.")
        if kind == "websocket" and name.lower() in _OWN:
            raise ValueError(f"Expected headers other than those of the handshake, but got {name!r}.")
        if name.lower() == "sec-websocket-protocol":
            raise ValueError("Expected headers without Sec-WebSocket-Protocol. Use subprotocols=[…].")
    names = {name.lower() for name, _ in given}
    fields = [("host", HOST), ("user-agent", "hubbub.testing")]
    if kind == "websocket":
        key = b64encode(token_bytes(16)).decode()
        fields += [("upgrade", "websocket"), ("connection", "Upgrade")]
        fields += [("sec-websocket-key", key), ("sec-websocket-version", "13")]
    else:
        fields += [("accept", "text/event-stream")]
    fields = [(name, value) for name, value in fields if name not in names]
    if isinstance(subprotocols, str) or not all(map(_TOKEN.fullmatch, subprotocols)):
        raise ValueError(f"Expected subprotocols as a list of tokens, but got {subprotocols!r}.")
    if subprotocols:
        fields.append(("sec-websocket-protocol", ", ".join(subprotocols)))
    if cookies:
        if "cookie" in names:
            raise ValueError("Expected either cookies=… or the header Cookie, but got both.")
        pairs = [f"{name}={value}" for name, value in cookies.items()]
        if any(re.search(r"[;\r\n\0]", pair) for pair in pairs):
            raise ValueError("Expected cookies without ';' and line ends, but got at least one with them.")
        fields.append(("cookie", "; ".join(pairs)))
    return fields + given
