"""An exchange: one request that an app handles in a task, between the app's side and the client's side.

It takes the place of server and network. Each direction has a buffer, as a socket has: a client that does not
read makes the app's ``send`` wait, and an app that does not receive makes its client wait. The app's side
waits as long as it likes; every wait of the client's side has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Scope
from starlette.websockets import WebSocketDisconnect

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Bytes that wait in one direction until the next message has to wait. The one that exceeds them is taken.
BUFFER = 65_536
#: Bytes that each message takes beside its payload, so that the number of empty ones is bounded too.
OVERHEAD = 10


class ClientDisconnected(OSError):
    """The client has left; raised by the app's ``send``, as servers do."""


class Deadline:
    """The end of several waits that together may take some seconds.

    :param seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; 0 afterwards."""
        return max(0.0, self._end - self._loop.time())


class Buffer(Generic[T]):
    """Messages on their way in one direction."""

    def __init__(self) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def has_room(self) -> bool:
        return self._size < BUFFER

    def push(self, item: T, size: int) -> None:
        self._items.append((item, size + OVERHEAD))
        self._size += size + OVERHEAD

    def pop(self) -> T:
        item, size = self._items.popleft()
        self._size -= size
        return item

    def clear(self) -> None:
        self._items.clear()
        self._size = 0


class Exchange(ABC, Generic[T]):
    """One request of an app, and its task.

    A subclass has the messages of one ASGI protocol in :meth:`receive` and :meth:`send`.

    :param app: the application.
    :param scope: of the request.
    """

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self._app = app
        self.scope = scope
        #: Messages for the client.
        self.outbound: Buffer[T] = Buffer()
        #: Whether the client has ended the connection.
        self.has_left = False
        #: Whether the app has returned, or has failed.
        self.is_done = False
        #: The exception with which the app has failed, unless it only says that the client has left.
        self.failure: BaseException | None = None
        # Set at each change that a wait may be about.
        self._change = asyncio.Event()
        # Whether the test has got the app's exception.
        self._is_reported = False

    # The app's side

    @abstractmethod
    async def receive(self) -> Message:
        """Return the next event for the app."""

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Take an event from the app."""

    async def room(self) -> None:
        """Wait until the client has room for one more message.

        :raises ClientDisconnected: the client has left.
        """
        await self.until(lambda: self.outbound.has_room or self.has_left)
        if self.has_left:
            raise ClientDisconnected

    # The client's side

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether no message follows those that wait for the client."""

    @abstractmethod
    def ending(self) -> Exception:
        """Return the exception for a client that waits for a message when the exchange is over."""

    @property
    def has_ended(self) -> bool:
        """Whether one of both sides has ended the connection."""
        return self.has_left

    def check_failure(self) -> None:
        """Raise the app's exception, if it has failed."""
        if (exc := self.failure) is not None:
            if not self._is_reported:
                self._is_reported = True
                exc.add_note(
                    f"Raised by the app under test, at {self.scope['path']}. Its client: {self.ending()}"
                )
            raise exc

    async def ended(self, timeout: float) -> Exception:
        """Return the exception for a client that waits when the exchange is over.

        An app that fails may close the connection first: its exception follows, and is more important.

        :param timeout: seconds that the app has to return.
        :raises Exception: the app has failed.
        """
        await self.until(lambda: self.is_done, timeout)
        self.check_failure()
        return self.ending()

    async def take(self, timeout: float, message: Callable[[], str]) -> T:
        """Return the next message for the client.

        :param timeout: seconds until ``TimeoutError`` is raised.
        :param message: returns the text of that exception.
        """
        if not await self.until(lambda: bool(self.outbound) or self.is_over, timeout):
            raise TimeoutError(message())
        if not self.outbound:
            raise await self.ended(timeout)
        item = self.outbound.pop()
        self.changed()
        return item

    # Waiting

    def changed(self) -> None:
        """Let those that wait look again."""
        self._change.set()

    async def until(self, holds: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until ``holds()``. Nothing comes between that and the return.

        :param timeout: seconds after which ``False`` is returned; ``None`` waits without a limit.
        """
        if timeout is None:
            # Also without a task: the hub runs ``send`` up to its first suspension in none.
            while not holds():
                self._change.clear()
                await self._change.wait()
            return True
        try:
            async with asyncio.timeout(timeout) as limit:
                return await self.until(holds)
        except TimeoutError:
            if limit.expired():
                return holds()
            raise

    # Lifecycle

    @asynccontextmanager
    async def running(self, timeout: float) -> AsyncIterator[None]:
        """Run the app's task, and leave nothing of it behind.

        At the end of the block the client leaves. If the app has failed and the test has not got its
        exception, it is raised there.

        :param timeout: seconds that the app has to return after its client has left.
        """
        task = asyncio.create_task(
            self._run(), name=f"{self.scope['type']} {self.scope['path']} of the app under test"
        )
        self._cancel = task.cancel
        task.add_done_callback(self._finished)
        try:
            yield
        except BaseException as exc:
            await self.end(timeout)
            if (failure := self.failure) is not None and not self._is_reported:
                exc.add_note(f"Meanwhile the app under test has failed with {failure!r}.")
            raise
        await self.end(timeout)
        if not self._is_reported:
            self.check_failure()

    def leave(self) -> None:
        """End the connection from the client's side."""
        self.has_left = True
        self.outbound.clear()
        self.changed()

    async def end(self, timeout: float) -> None:
        """Leave, and wait until the app has returned; cancel it if it does not.

        :param timeout: seconds after which it is cancelled, and as many until it has to end then.
        :raises TimeoutError: it does not end although it is cancelled.
        """
        self.leave()
        try:
            await self.until(lambda: self.is_done, timeout)
        except asyncio.CancelledError:
            self._cancel()
            await self.until(lambda: self.is_done, timeout)
            raise
        if not self.is_done:
            logger.warning(
                "The app did not return within %g s after its client had left %s; cancelling it. It would "
                "run on under a server. Receive from the socket as well, to learn that the client has left.",
                timeout,
                self.scope["path"],
            )
            self._cancel()
            await self.until(lambda: self.is_done, timeout)
        if not self.is_done:
            raise TimeoutError(
                f"The handler of {self.scope['path']} did not end within {timeout:g} s after it was "
                "cancelled."
            )

    async def _run(self) -> None:
        await self._app(self.scope, self.receive, self.send)

    def _finished(self, task: asyncio.Task[None]) -> None:
        # The task is not kept: the traceback of its exception would keep alive all that the app had open.
        self.is_done = True
        exc = None if task.cancelled() else task.exception()
        if exc is not None and not (self.has_ended and _is_disconnect(exc)):
            self.failure = exc
        self.changed()


def _is_disconnect(exc: BaseException) -> bool:
    """Whether ``exc`` only says that the client has left; task groups wrap it."""
    kinds = (WebSocketDisconnect, ClientDisconnect, ClientDisconnected)
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(kinds)[1] is None
    return isinstance(exc, kinds)
