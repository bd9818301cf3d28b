"""Preflight: CORS for the doors, so that pages which ``allow_origins`` names can read their answers.

CORS (https://fetch.spec.whatwg.org/#http-cors-protocol) applies to ``GET`` and ``POST``, not to WebSockets.
An application may use Starlette's ``CORSMiddleware`` as well. It answers preflight requests itself, and sets
its headers in place of these.
"""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from hubbub.connection.closing import MAX_LAYERS
from hubbub.node.refusals import CountedRefusal, Refusals
from hubbub.routes.serving import Serving
from hubbub.security.admission import Admission
from hubbub.security.origins import is_named

#: The methods and headers that doors take from pages of other hosts.
METHODS = "GET, POST"
HEADERS = "Authorization, Content-Type, Last-Event-ID"

#: Seconds for which a browser may remember the answer to a preflight request.
MAX_AGE = 600


def cors_headers(http: HTTPConnection, admission: Admission) -> dict[str, str]:
    """Return the CORS headers for the answer to a request, also for a refusal.

    :param http: the request.
    :param admission: knows the pages of other hosts that may connect.
    :return: empty for a page that ``allow_origins`` does not name. Pages of the server's own host need none.
    """
    if not admission.origins:
        return {}
    # Caches must not give the answer for one page to another page, nor the answer without these headers.
    headers = {} if admission.origins == {"*"} or _adds_vary(http) else {"Vary": "Origin"}
    origin = http.headers.get("origin")
    if origin is None:
        pass
    elif is_named(origin, admission.origins):
        headers["Access-Control-Allow-Origin"] = origin.strip()
        headers["Access-Control-Allow-Credentials"] = "true"
    elif "*" in admission.origins:
        # Without credentials: every page may read the answer, but none with the cookies of its visitor.
        headers["Access-Control-Allow-Origin"] = "*"
    return headers


def with_cors(exc: HTTPException, http: HTTPConnection, admission: Admission) -> HTTPException:
    """Return a copy of a refusal with the CORS headers, so that the page can read its status and detail.

    An application may raise one exception again and again: headers for one page must not stay in it.
    """
    copied = exc.__class__.__new__(exc.__class__, *exc.args)
    copied.__dict__.update(exc.__dict__)
    copied.headers = {**(exc.headers or {}), **cors_headers(http, admission)}
    return copied.with_traceback(exc.__traceback__)


class PreflightDoor:
    """The door for preflight requests: ``OPTIONS /channels/{channel}``.

    :param serving: the parts of the hub that it uses.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def endpoint(self, request: Request, channel: str) -> Response:
        """Answer one request; the answer is the same for all channels."""
        node, _ = await self._serving.start()
        return preflight(request, self._serving.admission, node.refusals)


def preflight(request: Request, admission: Admission, refusals: Refusals) -> Response:
    """Answer a preflight request, by which a browser asks whether a page may send the request that follows.

    :param request: a request with the method ``OPTIONS``.
    :param admission: knows the pages of other hosts that may connect.
    :param refusals: counts a refusal.
    :raises HTTPException: ``allow_origins`` does not name the page (403).
    """
    admission.check(request, refusals)
    headers = cors_headers(request, admission)
    if "Access-Control-Allow-Origin" not in headers:
        refusals.count("origin")
        detail = "Expected the Origin of a page that Hub(allow_origins=…) names."
        raise CountedRefusal(403, detail, headers=headers)
    headers["Access-Control-Allow-Methods"] = METHODS
    headers["Access-Control-Allow-Headers"] = HEADERS
    headers["Access-Control-Max-Age"] = str(MAX_AGE)
    return Response(status_code=204, headers=headers)


def _adds_vary(http: HTTPConnection) -> bool:
    """Whether a ``CORSMiddleware`` of the app adds ``Vary: Origin``, so that it must not be there twice.

    It replaces the other headers, and adds to this one.
    """
    app = http.scope.get("app")
    layer: Any = app.middleware_stack if isinstance(app, Starlette) else None
    # As in closing.leave_closed(): by convention, a middleware has the next layer in its attribute ``app``.
    for _ in range(MAX_LAYERS):
        if layer is None:
            break
        if isinstance(layer, CORSMiddleware):
            return True
        layer = getattr(layer, "app", None)
    return False
