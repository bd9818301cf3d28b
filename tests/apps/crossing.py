"""Routes that stand for the doors: they check their clients as doors do, and answer with CORS headers.

The apps have no ``CORSMiddleware``, or have one inside or around them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from hubbub import Hub
from hubbub.node.refusals import Refusals
from hubbub.routes.preflight import cors_headers, preflight, with_cors
from hubbub.security.admission import Admission
from hubbub.security.hosts import parse_hosts
from hubbub.security.origins import parse_origins

PAGE = "https://app.example.com"


def application(*origins: str) -> FastAPI:
    hub = Hub(allow_origins=origins)
    app = FastAPI()
    admission = Admission(parse_origins(origins), parse_hosts(["127.0.0.1", "localhost", "testserver"]))
    refusals = Refusals()

    async def events() -> AsyncIterator[str]:
        yield "data: hello\n\n"

    @app.get("/")
    async def counts() -> dict[str, int]:
        return {reason: count for reason, count in refusals.counts().items() if count}

    @app.websocket("/channels/{channel:path}")
    async def ws(websocket: WebSocket, channel: str) -> None:
        admission.check_door(websocket, refusals)
        async with hub.connection(websocket) as client:
            await client.send("welcome")

    @app.get("/channels/{channel:path}")
    async def get(request: Request, channel: str) -> Response:
        admission.check_door(request, refusals)
        headers = cors_headers(request, admission)
        if channel == "closed":
            raise with_cors(CLOSED, request, admission)
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    @app.post("/channels/{channel:path}")
    async def post(request: Request, channel: str) -> Response:
        admission.check_door(request, refusals)
        return JSONResponse(admission.has_allowed_origin(request), headers=cors_headers(request, admission))

    @app.options("/channels/{channel:path}")
    async def options(request: Request, channel: str) -> Response:
        return preflight(request, admission, refusals)

    # After the routes that stand for its doors.
    app.include_router(hub.router)
    return app


class Closed(HTTPException):
    """A refusal of an application, which raises the same object again and again."""


CLOSED = Closed(status_code=404, detail="no such channel", headers={"X-Reason": "closed"})


#: The settings of a middleware that fits the hub.
FITTING: dict[str, Any] = {
    "allow_origins": [PAGE],
    "allow_credentials": True,
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["Authorization", "Content-Type", "Last-Event-ID"],
}

plain = application(PAGE)

with_middleware = application(PAGE)
with_middleware.add_middleware(CORSMiddleware, **FITTING)

for_other_pages = application(PAGE)
for_other_pages.add_middleware(CORSMiddleware, allow_origins=["https://other.example.com"])

within_middleware: ASGIApp = CORSMiddleware(application(PAGE), **FITTING)
