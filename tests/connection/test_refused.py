"""A refusal leaves the block as an exception, and closes the socket once, in whichever application it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, WebSocket, WebSocketException
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Router, WebSocketRoute
from starlette.testclient import WebSocketTestSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubbub import Hub, InvalidMessage

REFUSALS = [
    (WebSocketException(4401, "why"), 4401, "why"),
    (WebSocketException(1006, "reserved"), 1011, "reserved"),
    (WebSocketException(4401, "x" * 500), 4401, "x" * 123),
    (HTTPException(403, "not your room"), 1008, "not your room"),
    (HTTPException(503, "later"), 1011, "later"),
    (InvalidMessage("Expected a text frame.", code=1003), 1003, "Expected a text frame."),
]


class Refusing:
    """A hub, and an endpoint that refuses its client with an exception.

    :param exc: the exception.
    """

    def __init__(self, exc: Exception) -> None:
        self.hub = Hub()
        self.exc = exc
        #: The exceptions that left the block.
        self.left: list[BaseException] = []
        #: The socket of the client.
        self.websocket: WebSocket | None = None

    async def endpoint(self, websocket: WebSocket) -> None:
        self.websocket = websocket
        try:
            async with self.hub.connection(websocket) as client:
                await client.receive()
                raise self.exc
        except BaseException as exc:
            self.left.append(exc)
            raise

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(self.hub.router)
        app.websocket("/")(self.endpoint)
        return app


@contextmanager
def refused(app: ASGIApp) -> Iterator[WebSocketTestSession]:
    with TestClient(app) as client, client.websocket_connect("/") as socket:
        socket.send_text("go")
        yield socket


def closing(code: int, reason: str) -> dict[str, Any]:
    return {"type": "websocket.close", "code": code, "reason": reason}


@pytest.mark.parametrize(("exc", "code", "reason"), REFUSALS)
def test_a_refusal_closes_and_leaves_the_block_as_an_exception_with_its_code(
    exc: Exception, code: int, reason: str
) -> None:
    refusing = Refusing(exc)
    with refused(refusing.app()) as socket:
        assert socket.receive() == closing(code, reason)
    (left,) = refusing.left
    assert isinstance(left, WebSocketException)
    assert (left.code, left.reason, left.__cause__) == (code, reason, exc)


def test_the_socket_of_the_user_is_not_changed() -> None:
    refusing = Refusing(HTTPException(403, "no"))
    with refused(refusing.app()) as socket:
        socket.receive()
    assert vars(refusing.websocket).keys().isdisjoint(dir(WebSocket))


@pytest.mark.parametrize(("exc", "code", "reason"), REFUSALS)
def test_code_around_the_block_may_catch_it(exc: Exception, code: int, reason: str) -> None:
    refusing = Refusing(exc)
    app = FastAPI()
    app.include_router(refusing.hub.router)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        try:
            await refusing.endpoint(websocket)
        except WebSocketException:
            await websocket.receive()

    with refused(app) as socket:
        # The endpoint has not returned.
        assert socket.receive() == closing(code, reason)


def test_a_dependency_sees_the_exception() -> None:
    refusing = Refusing(HTTPException(403, "no"))
    outcomes: list[str] = []

    async def transaction() -> AsyncIterator[None]:
        try:
            yield
        except WebSocketException:
            outcomes.append("rolled back")
            raise
        outcomes.append("committed")

    app = FastAPI()
    app.include_router(refusing.hub.router)

    app.websocket("/", dependencies=[Depends(transaction)])(refusing.endpoint)

    with refused(app) as socket:
        assert socket.receive() == closing(1008, "no")
    assert outcomes == ["rolled back"]


# Exception handlers


@pytest.mark.parametrize("exc", [WebSocketException(4401, "why"), HTTPException(403, "no")])
def test_a_handler_for_websocket_exceptions_closes_itself(exc: Exception) -> None:
    refusing = Refusing(exc)
    app = refusing.app()

    # Without annotations: an exception of this class can only be about a socket.
    async def handle(websocket, exc):  # type: ignore[no-untyped-def]
        await websocket.close(4999, f"handled {exc.code}")

    app.add_exception_handler(WebSocketException, handle)
    code = 4401 if isinstance(exc, WebSocketException) else 1008
    with refused(app) as socket:
        assert socket.receive() == closing(4999, f"handled {code}")


def test_a_handler_for_a_status_does_not_answer_an_open_socket() -> None:
    refusing = Refusing(HTTPException(403, "no"))
    app = refusing.app()

    @app.exception_handler(403)
    async def forbidden(request: Any, exc: Exception) -> None:
        raise AssertionError("called for a socket")

    with refused(app) as socket:
        assert socket.receive() == closing(1008, "no")


# Applications


def test_a_middleware_that_hides_what_it_wraps_leaves_the_close_frame_to_the_application() -> None:
    refusing = Refusing(HTTPException(403, "no"))
    app = refusing.app()

    def middleware(inner: ASGIApp) -> ASGIApp:
        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            await inner(scope, receive, send)

        return call

    app.add_middleware(middleware)
    with refused(app) as socket:
        assert socket.receive() == closing(1008, "no")


class LeadsBack:
    """A middleware whose attribute ``app`` is not the next layer, but itself.

    It ends after a large number of steps, so that a test which takes them all fails instead of hanging.
    """

    STEPS = 10_000

    def __init__(self, app: ASGIApp) -> None:
        self._inner = app
        self.steps = 0

    @property
    def app(self) -> LeadsBack | None:
        self.steps += 1
        return self if self.steps < self.STEPS else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._inner(scope, receive, send)


def test_a_middleware_that_leads_back_to_itself_does_not_stop_the_event_loop() -> None:
    refusing = Refusing(HTTPException(403, "no"))
    app = refusing.app()
    made: list[LeadsBack] = []

    def middleware(inner: ASGIApp) -> ASGIApp:
        made.append(LeadsBack(inner))
        return made[0]

    app.add_middleware(middleware)
    with refused(app) as socket:
        assert socket.receive() == closing(1008, "no")
    assert made[0].steps < LeadsBack.STEPS


def test_a_mounted_application_has_exception_handling_of_its_own() -> None:
    refusing = Refusing(HTTPException(403, "no"))
    inner = FastAPI()
    inner.websocket("/")(refusing.endpoint)
    app = FastAPI()
    app.include_router(refusing.hub.router)
    app.mount("/", inner)
    with refused(app) as socket:
        assert socket.receive() == closing(1008, "no")


def test_starlette_without_fastapi() -> None:
    refusing = Refusing(HTTPException(403, "no"))
    app = Starlette(
        routes=[WebSocketRoute("/", refusing.endpoint)], lifespan=refusing.hub.router.lifespan_context
    )
    with refused(app) as socket:
        assert socket.receive() == closing(1008, "no")


def test_a_router_without_an_application_lets_the_exception_through() -> None:
    refusing = Refusing(HTTPException(403, "no"))
    router = Router([WebSocketRoute("/", refusing.endpoint)], lifespan=refusing.hub.router.lifespan_context)
    seen: list[object] = []

    async def recording(scope: Scope, receive: Receive, send: Send) -> None:
        async def record(message: Message) -> None:
            if message["type"] == "websocket.close":
                seen.append(message)
            await send(message)

        await router(scope, receive, record)

    with pytest.raises(WebSocketException, match="no"), refused(recording) as socket:
        # The exception of the endpoint may overtake the close frame.
        socket.receive()
    assert seen == [closing(1008, "no")]
