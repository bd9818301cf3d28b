"""The request of a WebSocket handshake (:rfc:`6455#section-4.2.1`), parsed from the bytes of its head.

websockets' own parser sends no answer to a request with a body. It also refuses header lines over 8 KiB and
more than 128 headers, limits that RFC 6455 does not have, while browsers send larger cookies. This parser has
one limit for the whole head, and every refused request gets an answer.
"""

from __future__ import annotations

from http import HTTPStatus

from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.version import version as websockets_version

from hubbub.servers.limits import MAX_HEAD

#: The end of a request head.
END = b"\r\n\r\n"

# How websockets decodes header values: uvicorn encodes them in the same way.
_CODEC = (
    ("latin-1", "strict") if int(websockets_version.split(".")[0]) >= 17 else ("ascii", "surrogateescape")
)


class HandshakeRefused(Exception):
    """A handshake that is answered with an error.

    :param status: the answer's status.
    :param text: the answer's body, for people.
    :param headers: additional headers of the answer.
    """

    def __init__(self, status: HTTPStatus, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers or {}


def read_request(head: bytes) -> Request:
    """Parse and check the head of a request that asks for a WebSocket.

    :meth:`websockets.server.ServerProtocol.accept` checks the rest: method, protocol version, ``Connection``
    and ``Sec-WebSocket-Key``.

    :param head: the request line and the headers, including the empty line at the end; an HTTP parser has
        accepted it before.
    :raises HandshakeRefused: the request must not be accepted.
    """
    if len(head) > MAX_HEAD:
        raise HandshakeRefused(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"The request head has {len(head)} bytes. The limit is {MAX_HEAD}.\n",
        )
    request_line, *lines = head.removesuffix(END).split(b"\r\n")
    headers = Headers()
    try:
        method, target, protocol = request_line.decode("ascii").split(" ")
        for line in lines:
            name, value = line.split(b":", 1)
            headers[name.decode("ascii").lower()] = value.strip(b" \t").decode(*_CODEC)
    except ValueError as exc:
        raise HandshakeRefused(HTTPStatus.BAD_REQUEST, "The request head is malformed.\n") from exc
    if not target.startswith("/"):
        target = _origin_form(target, headers)
    _check(headers)
    return Request(target, headers, method, protocol)


def _origin_form(target: str, headers: Headers) -> str:
    """Return path and query of an absolute target, and set ``Host`` to its host (RFC 9112, section 3.2.2)."""
    scheme, separator, rest = target.partition("://")
    end = min((at for mark in "/?" if (at := rest.find(mark)) >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:]
    if not separator or scheme.lower() not in ("http", "https", "ws", "wss") or "@" in authority:
        raise HandshakeRefused(HTTPStatus.BAD_REQUEST, "The request target is malformed.\n")
    if "host" in headers:
        del headers["host"]
    headers["host"] = authority
    return path if path.startswith("/") else f"/{path}"


def _check(headers: Headers) -> None:
    if len(hosts := headers.get_all("Host")) != 1 or not hosts[0]:
        # RFC 9112, section 3.2: "A server MUST respond with a 400 (Bad Request) …".
        raise HandshakeRefused(HTTPStatus.BAD_REQUEST, "The request needs one Host header.\n")
    if headers.get_all("Transfer-Encoding") or not set(headers.get_all("Content-Length")) <= {"0"}:
        # A body would be parsed as frames, or frames as a body.
        raise HandshakeRefused(HTTPStatus.BAD_REQUEST, "The request for a WebSocket may have no body.\n")
    if headers.get_all("Sec-WebSocket-Version") != ["13"]:
        # RFC 6455, section 4.4: the answer names the supported versions. RFC 9110, section 15.5.22: it names
        # the protocol to upgrade to.
        raise HandshakeRefused(
            HTTPStatus.UPGRADE_REQUIRED,
            "This server speaks version 13 of the WebSocket protocol.\n",
            {"Sec-WebSocket-Version": "13", "Upgrade": "websocket", "Connection": "Upgrade"},
        )
