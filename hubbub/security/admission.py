"""Admission: refuses a WebSocket by its ``Origin`` and ``Host`` headers, before it is accepted."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NoReturn

from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocket, WebSocketState

from hubbub.codes import CloseCode, clip_reason
from hubbub.core.throttle import Throttle
from hubbub.security.hosts import Hosts
from hubbub.security.logs import is_reported
from hubbub.security.origins import is_allowed

logger = logging.getLogger(__name__)

# One line in the log every ten seconds for each, however many clients are refused.
_refused_origins, _refused_hosts = Throttle(), Throttle()


@dataclass(frozen=True, slots=True)
class Admission:
    """The web pages and host names from which a hub accepts connections.

    :param origins: from :func:`hubbub.security.origins.parse_origins`.
    :param hosts: from :func:`hubbub.security.hosts.parse_hosts`; ``None`` accepts every host name.
    """

    origins: frozenset[str]
    hosts: Hosts | None

    def check(self, websocket: WebSocket) -> None:
        """Refuse ``websocket`` if its page or its host name is not allowed.

        :raises HTTPException: it is refused with status 403.
        :raises WebSocketException: it is refused, and the server cannot answer with a status any more.
        """
        self._check_host(websocket)
        self._check_origin(websocket)

    def _check_host(self, websocket: WebSocket) -> None:
        host = websocket.headers.get("host")
        if self.hosts is None or self.hosts.include(host):
            return
        if (more := _refused_hosts.admit()) is not None:
            # The header comes from the client: cut, and escaped by %r.
            logger.warning(
                "Refused a connection with 403: its Host is %.200r, which is not in Hub(hosts=…). Behind a "
                "proxy that rewrites Host, pass the header on (nginx: proxy_set_header Host $http_host).%s",
                host,
                more,
            )
        _refuse(websocket, "This server does not answer to the name in the Host header; see Hub(hosts=…).")

    def _check_origin(self, websocket: WebSocket) -> None:
        origin = websocket.headers.get("origin")
        host = websocket.headers.get("host")
        if origin is None or is_allowed(origin, host, self.origins):
            return
        if (more := _refused_origins.admit()) is not None:
            logger.warning(
                "Refused a page from %.200r with 403: the request's Host is %.200r, and the page is not in "
                "Hub(allow_origins=…). If the page is this server's own, a proxy rewrites Host: pass the "
                "header on (nginx: proxy_set_header Host $http_host), or name the page in allow_origins.%s",
                origin,
                host,
                more,
            )
        _refuse(websocket, f"Pages from {origin[:200]!r} may not connect here; see Hub(allow_origins=…).")


def _refuse(websocket: WebSocket, detail: str) -> NoReturn:
    """Answer 403; or close, if the application has accepted the socket already."""
    is_reported.set(True)
    is_answerable = "websocket.http.response" in websocket.scope.get("extensions", {})
    if is_answerable and websocket.application_state is WebSocketState.CONNECTING:
        raise HTTPException(403, detail)
    raise WebSocketException(CloseCode.POLICY_VIOLATION, clip_reason(detail))
