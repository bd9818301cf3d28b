"""Channels for event streams, on the engine of ``HUBBUB_URL``; and a page that listens to one of them.

``MIDDLEWARE`` puts one in front: ``gzip``, or ``http``, as ``@app.middleware("http")`` does.
"""

from __future__ import annotations

import gc
import os
import time
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import HTMLResponse

from hubbub import Channel, History, Hub, Identity
from hubbub.connection.stream import Stream

hub = Hub(
    os.environ.get("HUBBUB_URL", "memory://?alone=yes"),
    outbox_limit=100_000,
    send_timeout=float(os.environ.get("SEND_TIMEOUT", "30")),
    close_timeout=0.5,
)
hub.channel("room:{name}", history=History(size=1000, ttl=600), presence=True)
hub.channel("plain:{name}")
board = hub.channel("board:{name:path}", history=History(size=1000, ttl=600))
app = FastAPI()
app.include_router(hub.router)

#: The numbers that were added to each board, as in a database.
boards: dict[str, list[int]] = {}
#: Clients that have left.
left: list[str | None] = []


@hub.on_connect
async def connect(
    user: Annotated[str | None, Query()] = None, lifetime: Annotated[float | None, Query()] = None
) -> Identity:
    return Identity(user, {"name": user}, None if lifetime is None else time.time() + lifetime)


@board.snapshot
async def state(channel: Channel) -> list[int]:
    return boards.get(channel.name, [])


@board.on_unsubscribe
async def leave(identity: Identity) -> None:
    left.append(identity.user)


match os.environ.get("MIDDLEWARE"):
    case "gzip":
        app.add_middleware(GZipMiddleware, minimum_size=1)
    case "http":

        @app.middleware("http")
        async def pass_on(request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            response.headers["X-Passed"] = "yes"
            return response


@app.post("/publish/{channel:path}")
async def publish(
    channel: str, request: Request, kind: Annotated[str, Header()] = "text", count: int = 1
) -> str:
    """Publish the body, as text or binary."""
    body = await request.body()
    for _ in range(count):
        position = await hub.publish(channel, body.decode() if kind == "text" else body)
    return str(position)


@app.post("/boards/{name}/{number}")
async def add(name: str, number: int) -> None:
    boards.setdefault(f"board:{name}", []).append(number)
    await hub.publish(f"board:{name}", number)


@app.post("/disconnect/{user}")
async def disconnect(user: str) -> None:
    await hub.disconnect(user=user)


@app.get("/stats")
async def stats() -> dict[str, Any]:
    gc.collect()
    counts = hub.stats()
    return {
        "connections": counts.connections,
        "subscriptions": counts.subscriptions,
        "backlog": counts.backlog,
        "slow": counts.slow_disconnects,
        "streams": sum(isinstance(thing, Stream) for thing in gc.get_objects()),
        "left": left,
    }


@app.get("/")
async def page(channel: str = "room:page") -> HTMLResponse:
    return HTMLResponse(
        """<!doctype html><title>events</title><script>
        window.events = []
        window.source = new EventSource("/channels/" + new URLSearchParams(location.search).get("channel"))
        for (const name of ["message", "subscribed", "binary", "join", "close"])
          source.addEventListener(name, event => events.push([name, event.lastEventId, event.data]))
        </script>"""
    )
