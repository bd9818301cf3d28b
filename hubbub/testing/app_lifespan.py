"""The lifespan of an app in tests: run once for all clients that use the app at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message

from hubbub.threads import running_loop

logger = logging.getLogger(__name__)

#: Seconds that an app may take to start, and as many to stop: longer than an engine takes to find out that
#: its server is away.
LIFESPAN_TIMEOUT = 30.0


class Lifespan:
    """Runs the lifespan of one app on one event loop, as long as at least one holder needs it.

    It runs in a task of its own: a fixture may be set up and torn down in different tasks, and an app may
    have a task group or a time limit in its lifespan, which has to end in the task that began it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        #: Holders, and tasks that wait until they can hold it.
        self.holders = 0
        #: The values that the lifespan has yielded, for the scope of each request.
        self.state: dict[str, Any] = {}
        # Held while the app starts or stops.
        self._changing = asyncio.Lock()
        # The task that runs the lifespan; ``None`` while it does not run.
        self._task: asyncio.Task[None] | None = None

    async def enter(self) -> None:
        """Hold the app; start it if it does not run.

        :raises Exception: the app did not start; it is the exception of the app.
        """
        self.holders += 1
        try:
            async with self._changing:
                if self._task is None:
                    await self._start()
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        """Hold the app no longer; stop it with the last holder."""
        self.holders -= 1
        if self.holders:
            return
        async with self._changing:
            # Held again meanwhile, or stopped by another task.
            if self.holders or self._task is None:
                return
            task, self._task = self._task, None
            self._stopping.set()
            await self._ended(task, "stop")
            if self._failure:
                # Starlette raises the exception right after it; other frameworks return.
                raise RuntimeError(self._failure)

    # Internal

    async def _start(self) -> None:
        self.state = {}
        self._has_begun = False
        # The failure to stop that the app has reported.
        self._failure = ""
        self._stopping = asyncio.Event()
        self._started: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(), name="lifespan of the app under test")
        try:
            either: set[asyncio.Future[Any]] = {task, self._started}
            await asyncio.wait(either, timeout=LIFESPAN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await _cancelled(task)
            raise
        if self._started.done():
            if (answer := self._started.result())["type"] == "lifespan.startup.failed":
                # Likewise.
                await self._ended(task, "end after it had failed to start")
                raise RuntimeError(f"The app did not start: {answer.get('message') or 'it gave no reason'}")
        elif not task.done():
            await _cancelled(task)
            raise TimeoutError(f"The app's lifespan did not start within {LIFESPAN_TIMEOUT:g} s.")
        elif (exc := task.exception()) is not None:
            # As servers do: an app that answers nothing knows no lifespan.
            logger.debug("The app has no lifespan: %r", exc)
            return
        self._task = task

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if not self._has_begun:
            self._has_begun = True
            return {"type": "lifespan.startup"}
        await self._stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        if not self._started.done():
            self._started.set_result(message)
        elif message["type"] == "lifespan.shutdown.failed":
            self._failure = f"The app did not stop: {message.get('message') or 'it gave no reason'}"

    async def _ended(self, task: asyncio.Task[None], verb: str) -> None:
        """Wait for the end of the lifespan, and raise its exception."""
        try:
            await asyncio.wait({task}, timeout=LIFESPAN_TIMEOUT)
            if not task.done():
                raise TimeoutError(f"The app's lifespan did not {verb} within {LIFESPAN_TIMEOUT:g} s.")
        finally:
            await _cancelled(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            raise exc


async def _cancelled(task: asyncio.Task[None]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=LIFESPAN_TIMEOUT)
    if task.done() and not task.cancelled():
        # Otherwise asyncio would log that it was never retrieved.
        task.exception()


# Those that run or change, so that all holders of an app find the same.
_lifespans: dict[tuple[int, asyncio.AbstractEventLoop], Lifespan] = {}


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[dict[str, Any]]:
    """Run the lifespan of ``app`` in a test, as a server does.

    :func:`connect` and :func:`events` do it by themselves. Use it around several of them, one after the
    other, that need the same running app; or for requests of ``httpx2.ASGITransport``, which runs no
    lifespan. All that use the app at the same time share one lifespan, which ends with the last of them::

        async with lifespan(app):
            async with connect(app, "room:7") as client: ...
            async with connect(app, "room:7") as client: ...  # the history is still there

    :param app: the app, or any other ASGI application.
    :return: the values that the app's lifespan has yielded.
    :raises Exception: the app did not start or stop; it is the exception of the app.
    :raises RuntimeError: the event loop is not asyncio's.
    :raises TimeoutError: the app did not start, or did not stop, within 30 seconds.
    """
    loop = running_loop()
    if loop is None:
        raise RuntimeError(
            "Expected a test on asyncio, but got another event loop, such as trio's. With anyio's plugin for "
            "pytest, let the fixture anyio_backend return 'asyncio'."
        )
    key = (id(app), loop)
    held = _lifespans.setdefault(key, Lifespan(app))
    try:
        await held.enter()
        try:
            yield held.state
        finally:
            await held.leave()
    finally:
        # It holds the app, so that no other app can have its id meanwhile.
        if not held.holders:
            _lifespans.pop(key, None)
