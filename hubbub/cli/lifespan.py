"""The life of an app in one process of ``hubbub run``.

Its start is told in one line if the engine is away or does not fit; what is watched is watched until its end.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubbub.cli.descriptors import watched
from hubbub.exceptions import EngineUnavailable, InvalidURL


class Lifespan:
    """An app around ``app`` that says why an engine cannot be used, instead of where in the code it was
    noticed: the traceback leads into Hubbub, and there is nothing to be mended there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine of its own, which would be kept for as long as the connection is.
        if scope["type"] != "lifespan":
            return self._app(scope, receive, send)
        return self._lifespan(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: Message | None = None

        async def hold(message: Message) -> None:
            nonlocal failure
            if message["type"] == "lifespan.startup.failed":
                # Starlette says so first, with the traceback as text, and then raises what it is about.
                failure = message
            else:
                await send(message)

        try:
            with watched():
                await self._app(scope, receive, hold)
        except (EngineUnavailable, InvalidURL) as exc:
            if failure is not None:
                failure["message"] = str(exc)
            raise
        finally:
            if failure is not None:
                await send(failure)
