"""Writing through ASGI's ``send``, on any server, without a task while the client keeps up."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from asyncio import current_task
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

from starlette.websockets import WebSocketDisconnect

from hubbub.core.frames import Batch
from hubbub.transports.base import Transport

logger = logging.getLogger(__name__)

# In place of the future that a coroutine waits for, when the coroutine has ended.
_DONE = object()


class Suspended:
    """An awaitable that has run up to its first suspension, for a task to await the rest of it.

    :param steps: the iterator of its ``__await__``, which has been started.
    :param awaited: the future that it waits for.
    """

    __slots__ = ("_awaited", "_steps")

    def __init__(self, steps: Generator[Any, Any, None], awaited: object) -> None:
        self._steps = steps
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        # ``yield from``, entered in the middle.
        awaited = self._awaited
        while True:
            try:
                value = yield awaited
            except BaseException as exc:
                step = partial(self._steps.throw, exc)
            else:
                step = partial(self._steps.send, value)
            try:
                awaited = step()
            except StopIteration:
                return
            finally:
                # It may hold an exception, whose traceback holds this frame: a reference cycle.
                del step


class SendingTransport(Transport):
    """Base of the transports that write over ASGI's ``send``.

    ``send`` is a coroutine, but on most servers it never suspends while the client keeps up (uvicorn,
    hypercorn). So ``write`` runs it without a task, up to its end or its first suspension. A coroutine that
    is suspended is continued by a task; batches wait in the outbox meanwhile, and the task sends them and
    ends when the outbox is empty. On servers whose ``send`` always suspends (granian) this is one task for
    each burst.

    A coroutine that begins here may end in another task. So it begins in none, also where a handler's task
    writes, and in a context that this transport keeps: a copy of its connection's. Code in ``send`` that must
    run inside a task, such as a time limit in a middleware, raises when it is run like this. Then the
    connection's messages are left to tasks altogether.

    Everything leaves in the order in which it was written, the close last.
    """

    __slots__ = ("_close", "_context", "_loop", "_needs_task", "_sending_since")

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._needs_task = False
        # The close that goes out once nothing else waits.
        self._close: tuple[int, str] | None = None
        # When the send that is under way began, by the loop's clock.
        self._sending_since: float | None = None

    @property
    def write(self) -> Callable[[Any], int]:
        return self._send_in_task if self._needs_task else self._send_now

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("Expected all of a batch to be taken by write().")

    def close(self, code: int, reason: str) -> None:
        self._close = (code, reason)
        if self._task is None:
            self._start(None)

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def stalled(self, now: float) -> float:
        return 0.0 if self._sending_since is None else now - self._sending_since

    # For subclasses

    @abstractmethod
    def _events_of(self, batch: Any) -> Sequence[dict[str, Any]]:
        """Return the events of ASGI that send ``batch``. Called once for each batch."""

    @abstractmethod
    def _send_of_now(self) -> Callable[[Any], Awaitable[None]]:
        """Return the ``send`` that is called without a task."""

    @abstractmethod
    async def _send_event(self, event: dict[str, Any]) -> None:
        """Send one event, in a task."""

    @abstractmethod
    async def _send_close(self, code: int, reason: str) -> None:
        """Send the last event, in a task."""

    def _fail(self, exc: BaseException) -> None:
        """Write nothing any more, because ``send`` has failed."""
        logger.debug("Could not send to a client, because it has left: %r", exc)
        self.lost()

    # Without a task

    def _send_now(self, batch: Batch) -> int:
        """Send ``batch`` as far as that needs no waiting."""
        # Given the loop, this takes a third of the time.
        if (task := current_task(self._loop)) is not None:
            # As event loops of other libraries do ("Extending asyncio" in Python's documentation).
            _leave_task(self._loop, task)
            try:
                return self._send_now(batch)
            finally:
                _enter_task(self._loop, task)
        send, events = self._send_of_now(), self._events_of(batch)
        for number, event in enumerate(events):
            steps = send(event).__await__()
            try:
                # Half the time of steps.send(None), which ends with an exception.
                awaited = self._context.run(next, steps, _DONE)
                if awaited is _DONE:
                    continue
            except (WebSocketDisconnect, OSError, asyncio.CancelledError) as exc:
                self._fail(exc)
            except Exception as exc:
                steps.close()
                logger.debug(
                    "Could not send without a task; using tasks for this client from now on: %r", exc
                )
                self._needs_task = True
                self._begin(batch, events[number:], None)
            else:
                self._begin(batch, events[number + 1 :], Suspended(steps, awaited))
            break
        return len(batch)

    # In a task

    def _send_in_task(self, batch: Batch) -> int:
        self._begin(batch, self._events_of(batch), None)
        return len(batch)

    def _begin(self, batch: Batch, events: Sequence[dict[str, Any]], suspended: Suspended | None) -> None:
        """Have a task send the rest of ``batch``: an event whose sending is suspended, and ``events``."""
        assert self._source is not None
        self._source.hold(batch)
        self._sending_since = self._loop.time()
        self._start(batch, events, suspended)

    def _start(
        self,
        batch: Batch | None,
        events: Sequence[dict[str, Any]] = (),
        suspended: Suspended | None = None,
    ) -> None:
        self._task = self._loop.create_task(self._run(batch, events, suspended), context=self._context)

    async def _run(
        self, batch: Batch | None, events: Sequence[dict[str, Any]], suspended: Suspended | None
    ) -> None:
        source = self._source
        assert source is not None
        try:
            while True:
                if batch is None:
                    if (batch := source.take()) is None:
                        break
                    events = self._events_of(batch)
                try:
                    if suspended is not None:
                        await suspended
                        suspended = None
                    for event in events:
                        self._sending_since = self._loop.time()
                        await self._send_event(event)
                finally:
                    self._sending_since = None
                    source.sent(batch)
                batch = None
            if self._close is not None:
                await self._send_close(*self._close)
        except (WebSocketDisconnect, RuntimeError, OSError) as exc:
            # The client has left, or the server has closed the socket by itself (a failed ping, a protocol
            # error) and reports that by refusing to send. The handler learns it when it receives.
            self._fail(exc)
        except asyncio.CancelledError:
            self.lost()
            raise
        except Exception:
            self.lost()
            logger.exception("Could not send to a client, because the server's send failed.")
        # Nothing was awaited since the outbox was found empty.
        self._task = None
        if self._close is not None:
            # Its close is out.
            self.lost()
        else:
            source.flow()
