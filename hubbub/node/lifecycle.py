"""The lifecycle of a hub: when its node starts and stops, and on which event loop.

FastAPI runs the lifespan of an app around those of its routers, and so around the hub's. An app that
publishes in its own lifespan does so before the hub is started there. So a hub that is included in an app
starts when it is first used (:meth:`Lifecycle.start_early`). A task, the *guard*, holds it until the app's
lifespan reaches the hub's. If that never happens, the guard stops the hub when the event loop ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent import futures
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar

from hubbub.exceptions import EngineUnavailable, HubNotRunning
from hubbub.node.node import Node
from hubbub.threads import running_loop

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a thread waits for the event loop, at most. Engines have deadlines of their own, which are
#: shorter.
CALL_TIMEOUT = 30.0

_HOW_TO_START = (
    "Add app.include_router(hub.router) to start it with the app, or use it inside 'async with hub'. (The "
    "lifespan of an app that is mounted in another one does not run: include the router in the outer app. "
    "TestClient runs lifespans only as 'with TestClient(app) as client'.)"
)


class Lifecycle:
    """Starts and stops a node, once for all holders. It runs as long as at least one of them holds it.

    Used as ``async with lifecycle``, by any number of tasks of one event loop at a time. A task that enters
    while the node stops waits for the end of that, and starts a new node.

    :param start: returns a node that has started. If it fails or is cancelled, nothing of the node remains.
    :param stop: stops a node, even if it is cancelled meanwhile.
    """

    def __init__(
        self, start: Callable[[], Awaitable[Node]], stop: Callable[[Node], Coroutine[Any, Any, None]]
    ) -> None:
        self._start = start
        self._stop = stop
        #: The running node, from the end of its start to the end of its stop.
        self.node: Node | None = None
        # Tasks that hold the node, or wait until they can.
        self._holders = 0
        # Held while the node starts or stops.
        self._changing = asyncio.Lock()
        # The event loop on which the node runs, or ran last, and whether it has stopped there.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_stopped = False
        # Holds a node that was started early until this event is set.
        self._guard: asyncio.Task[None] | None = None
        self._app_started = asyncio.Event()
        # Calls that threads wait for. The mutex protects them, the node and the loop; it is held for moments
        # only.
        self._mutex = Lock()
        self._calls: set[futures.Future[Any]] = set()
        self._pid = os.getpid()

    @property
    def state(self) -> str:
        """The state in words: "running", "stopped" or "not started"."""
        return "running" if self.node else "stopped" if self._has_stopped else "not started"

    # Holding the node

    async def __aenter__(self) -> Self:
        await self._hold()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._release()

    async def start_early(self) -> None:
        """Start the node before the app's lifespan does. That one calls :meth:`app_started`.

        :raises HubNotRunning: the node has run on this event loop and has stopped, or runs on another one.
        """
        if self._has_stopped and self._loop is asyncio.get_running_loop():
            raise self._not_running()
        if not await self._hold():
            # It was running already: another holder was first.
            await self._release()
            return
        # From here on the guard holds it.
        self._app_started = asyncio.Event()
        self._guard = asyncio.create_task(
            self._hold_for_the_app(self._app_started), name="hubbub early start"
        )
        # A task that is cancelled before its first step never runs, and would not release anything.
        await asyncio.sleep(0)

    def app_started(self) -> None:
        """Let the app hold the node from now on, instead of the guard."""
        self._app_started.set()

    async def _hold_for_the_app(self, app_started: asyncio.Event) -> None:
        try:
            await app_started.wait()
        except asyncio.CancelledError:
            logger.warning(
                "The event loop ends before the lifespan of the app has started the hub, which was started "
                "when it was first used; stopping the hub. The lifespan has failed, or does not run: that "
                "of an app that is mounted in another one does not, and TestClient runs lifespans only as "
                "'with TestClient(app) as client'."
            )
            raise
        finally:
            await self._release()

    async def _hold(self) -> bool:
        """Hold the node; return whether this call has started it."""
        self._take_loop()
        try:
            async with self._changing:
                if self.node is not None:
                    return False
                node = await self._start()
                with self._mutex:
                    self.node, self._pid = node, os.getpid()
                self._has_stopped = False
                return True
        except BaseException:
            await self._release()
            raise

    def _take_loop(self) -> None:
        loop = asyncio.get_running_loop()
        with self._mutex:
            if loop is not self._loop:
                if self._holders:
                    raise HubNotRunning(
                        "Expected the event loop on which the hub runs, but got another one. Make a hub of "
                        "its own for each event loop."
                    )
                # An asyncio.Lock belongs to the loop on which it was first waited for.
                self._loop, self._changing, self._has_stopped = loop, asyncio.Lock(), False
            self._holders += 1

    async def _release(self) -> None:
        self._holders -= 1
        if self._holders:
            return
        async with self._changing:
            # Held again meanwhile, or stopped by another task.
            if self._holders or self.node is None:
                return
            try:
                await self._stop(self.node)
            finally:
                with self._mutex:
                    self.node, self._has_stopped = None, True
                    calls, self._calls = self._calls, set()
                for call in calls:
                    call.cancel()

    # Using the node

    def running(self) -> Node:
        """Return the node, on its own event loop.

        :raises HubNotRunning: it does not run, or this is not its event loop.
        """
        node = self.node
        if node is None:
            raise self._not_running()
        if running_loop() is not node.loop:
            raise HubNotRunning(
                "Expected the event loop on which the hub was started, but got another loop or a thread. "
                "FastAPI runs 'def' endpoints in threads: publish there with hub.publish_sync(…), or make it "
                "'async def'."
            )
        return node

    def call(self, use: Callable[[Node], Coroutine[Any, Any, T]]) -> T:
        """Run ``use(node)`` on the node's event loop, and wait for its result in this thread.

        :param use: returns the coroutine.
        :raises HubNotRunning: the node does not run, or stops meanwhile.
        :raises EngineUnavailable: there is no result after ``CALL_TIMEOUT`` seconds.
        """
        # Before the mutex: after a fork, a thread that does not exist in the child may hold it for ever.
        if self.node is not None and self._pid != os.getpid():
            raise HubNotRunning(
                "Expected the process in which the hub runs, but got one that was forked from it. Use a "
                "Publisher."
            )
        with self._mutex:
            node = self.node
            if node is None:
                raise self._not_running("A thread cannot start it; 'await hub.publish(…)' can.")
            if node.loop.is_closed():
                raise HubNotRunning(
                    "Expected a running hub, but got one whose event loop is closed. Start it again."
                )
            # Under the mutex: the node either takes the call, or has stopped before.
            call = asyncio.run_coroutine_threadsafe(use(node), node.loop)
            self._calls.add(call)
        call.add_done_callback(self._forget)
        try:
            done, _ = futures.wait([call], CALL_TIMEOUT)
            if not done:
                raise EngineUnavailable(
                    f"The hub's event loop did not answer within {CALL_TIMEOUT:g} s; cancelled the call. "
                    "Look for code that blocks the loop."
                )
            return call.result()
        except futures.CancelledError:
            raise HubNotRunning(
                "The hub stopped while this thread waited for it. Whether the engine has accepted the "
                "message is not known."
            ) from None
        finally:
            # In case this thread does not wait any longer: there was no answer, or Ctrl+C.
            call.cancel()

    def _forget(self, call: futures.Future[Any]) -> None:
        with self._mutex:
            self._calls.discard(call)

    def _not_running(self, advice: str = "") -> HubNotRunning:
        """Make the error for a hub that has not started, or has stopped.

        :param advice: one more sentence, for a hub that has not started.
        """
        # On another event loop than the one on which it has stopped, the hub is one that has not started.
        if self._has_stopped and running_loop() in (None, self._loop):
            return HubNotRunning(
                "Expected a running hub, but got one that has stopped, with its app or its 'async with' "
                "block. To use it after the 'yield' of the app's own lifespan, put 'async with hub:' around "
                "the 'yield'."
            )
        sentences = ("Expected a running hub, but got one that has not started.", _HOW_TO_START, advice)
        return HubNotRunning(" ".join(filter(None, sentences)))
