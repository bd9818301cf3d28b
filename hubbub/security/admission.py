"""Admission: refuses a client by the page and the host name that its request has, before it is accepted."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NoReturn

from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketState

from hubbub.codes import CloseCode, clip_reason
from hubbub.core.throttle import Throttle
from hubbub.node.refusals import CountedClose, CountedRefusal, Refusals
from hubbub.security.hosts import Hosts
from hubbub.security.logs import is_reported
from hubbub.security.origins import is_allowed

logger = logging.getLogger(__name__)

# One line in the log every ten seconds for each, however many clients are refused.
_refused_origins, _refused_hosts, _refused_sites = Throttle(), Throttle(), Throttle()


@dataclass(frozen=True, slots=True)
class Admission:
    """The web pages and host names from which a hub accepts clients.

    :param origins: from :func:`hubbub.security.origins.parse_origins`.
    :param hosts: from :func:`hubbub.security.hosts.parse_hosts`; ``None`` accepts every host name.
    """

    origins: frozenset[str]
    hosts: Hosts | None

    def check(self, http: HTTPConnection, refusals: Refusals) -> None:
        """Refuse the client of an application's own endpoint if its page or its host name is not allowed.

        :param http: its request, or its socket.
        :param refusals: counts the refusal.
        :raises HTTPException: it is refused with status 403.
        :raises WebSocketException: it is refused, and the server cannot answer with a status any more.
        """
        self._check_host(http, refusals)
        self._check_origin(http, refusals)

    def check_door(self, http: HTTPConnection, refusals: Refusals) -> None:
        """Refuse the client of a door: as :meth:`check`, and by the headers of Fetch Metadata.

        A browser says with ``Sec-Fetch-Site`` which pages a request comes from, and with ``Sec-Fetch-Dest``
        for which purpose (https://www.w3.org/TR/fetch-metadata/). Scripts cannot set these headers, and other
        clients do not send them. They tell requests apart that carry cookies and no ``Origin``: those of
        images, links, forms, and of scripts in the mode "no-cors".

        :param http: its request, or its socket.
        :param refusals: counts the refusal.
        :raises HTTPException: it is refused with status 403.
        :raises WebSocketException: it is refused, and the server cannot answer with a status any more.
        """
        self.check(http, refusals)
        site = _token(http, "sec-fetch-site")
        if site in ("cross-site", "same-site") and not self.has_allowed_origin(http):
            self._refuse_site(http, refusals, f"it comes from another site ({site}) without an Origin")
        purpose = _token(http, "sec-fetch-dest", "empty")
        if http.scope.get("method") in ("GET", "HEAD") and purpose != "empty":
            self._refuse_site(http, refusals, f"the browser asks for {purpose[:50]!r}, not for a script")

    def has_allowed_origin(self, http: HTTPConnection) -> bool:
        """Whether ``http`` has an ``Origin`` header, and this page is allowed."""
        origin = http.headers.get("origin")
        return origin is not None and is_allowed(origin, http.headers.get("host"), self.origins)

    def _check_host(self, http: HTTPConnection, refusals: Refusals) -> None:
        host = http.headers.get("host")
        if self.hosts is None or self.hosts.include(host):
            return
        refusals.count("host")
        if (more := _refused_hosts.admit()) is not None:
            # The header comes from the client: cut, and escaped by %r.
            logger.warning(
                "Refused a connection with 403: its Host is %.200r, which is not in Hub(hosts=…). Behind a "
                "proxy that rewrites Host, pass the header on (nginx: proxy_set_header Host $http_host).%s",
                host,
                more,
            )
        detail = "This server does not answer to the name in the Host header; see Hub(hosts=…)."
        raise refusal(http, CountedRefusal(403, detail))

    def _check_origin(self, http: HTTPConnection, refusals: Refusals) -> None:
        origin = http.headers.get("origin")
        host = http.headers.get("host")
        if origin is None or is_allowed(origin, host, self.origins):
            return
        refusals.count("origin")
        if (more := _refused_origins.admit()) is not None:
            logger.warning(
                "Refused a page from %.200r with 403: the request's Host is %.200r, and the page is not in "
                "Hub(allow_origins=…). If the page is this server's own, a proxy rewrites Host: pass the "
                "header on (nginx: proxy_set_header Host $http_host), or name the page in allow_origins.%s",
                origin,
                host,
                more,
            )
        detail = f"Pages from {origin[:200]!r} may not connect here; see Hub(allow_origins=…)."
        raise refusal(http, CountedRefusal(403, detail))

    def _refuse_site(self, http: HTTPConnection, refusals: Refusals, reason: str) -> NoReturn:
        refusals.count("cross_site")
        if (more := _refused_sites.admit()) is not None:
            logger.warning("Refused a request with 403: %s.%s", reason, more)
        raise refusal(http, CountedRefusal(403, f"This request is refused: {reason}."))


def refusal(http: HTTPConnection, exc: HTTPException) -> HTTPException | WebSocketException:
    """Return ``exc`` in a form that still reaches the client, for a refusal that Hubbub has logged itself.

    :param http: the client's request, or its socket.
    :return: ``exc`` while a status can be sent. A socket that is accepted, or whose server cannot answer a
        handshake with a status, is closed instead: with 1013, "try again later", for 503, and with 1008 for
        any other status.
    """
    is_reported.set(True)
    return answer(http, exc)


def answer(http: HTTPConnection, exc: HTTPException) -> HTTPException | WebSocketException:
    """Return ``exc`` in a form that still reaches the client; see :func:`refusal`."""
    if http.scope["type"] != "websocket":
        return exc
    is_answerable = "websocket.http.response" in http.scope.get("extensions", {})
    state = getattr(http, "application_state", WebSocketState.CONNECTING)
    if is_answerable and state is WebSocketState.CONNECTING:
        return exc
    code = CloseCode.TRY_AGAIN_LATER if exc.status_code == 503 else CloseCode.POLICY_VIOLATION
    close = CountedClose if isinstance(exc, CountedRefusal) else WebSocketException
    return close(code, clip_reason(str(exc.detail)))


def _token(http: HTTPConnection, header: str, default: str = "") -> str:
    return http.headers.get(header, default).strip().lower()
