"""The lifespan of an app in one process of ``hubbub run``.

If the engine is unreachable or its URL is wrong, startup fails with one line in the log. While the app runs,
file descriptors are watched.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubbub.cli.descriptors import watch_descriptors
from hubbub.exceptions import EngineUnavailable, InvalidURL


class Lifespan:
    """An ASGI app around ``app`` that reports engine errors at startup by their message.

    A traceback would point into Hubbub, where the user has nothing to fix.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine function: its frame would live as long as the connection.
        if scope["type"] != "lifespan":
            return self._app(scope, receive, send)
        return self._lifespan(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: Message | None = None

        async def hold(message: Message) -> None:
            nonlocal failure
            if message["type"] == "lifespan.startup.failed":
                # Starlette sends this first, with the traceback as text, and then raises the exception.
                failure = message
            else:
                await send(message)

        try:
            with watch_descriptors():
                await self._app(scope, receive, hold)
        except (EngineUnavailable, InvalidURL) as exc:
            if failure is not None:
                failure["message"] = str(exc)
            raise
        finally:
            if failure is not None:
                await send(failure)
