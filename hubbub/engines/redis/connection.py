"""One connection to a Redis server, and the requests on it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeAlias

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import MovedError, NoScriptError, ReadOnlyError, RedisError, ResponseError

from hubbub.engines.base import ANSWER_TIMEOUT, CONNECT_TIMEOUT
from hubbub.exceptions import EngineUnavailable

logger = logging.getLogger(__name__)

#: The first element of a message that Redis pushes to a subscriber.
MESSAGES = (b"message", b"smessage")

#: The reason for closing a connection to a node of a cluster that does not serve our keys or topics any more.
MOVED = "the channels have moved to another node"

#: Called with the topic (the channel in Redis) and the payload.
OnMessage: TypeAlias = Callable[[bytes, bytes], None]


def deadline() -> float:
    """Return when a request that is made now fails without an answer, by the event loop's clock."""
    return asyncio.get_running_loop().time() + ANSWER_TIMEOUT


class Request:
    """A command, and the future of its answer.

    :param arguments: the command and its arguments.
    :param key: the key or the topic by which a cluster finds the node for it.
    :param deadline: when the request fails without an answer, by the event loop's clock.
    :param source: the source of the script that the arguments name, for a server that does not know it.
    :param generation_at: the index of the argument that is replaced by the generation of the server that the
        request is sent to; 0 if there is none.
    :param replies: the number of replies to the command; the last one is the answer.
    """

    __slots__ = ("answer", "arguments", "deadline", "generation_at", "key", "replies", "sent", "source")

    def __init__(
        self,
        arguments: list[bytes | str | int],
        key: bytes = b"",
        deadline: float = float("inf"),
        source: str | None = None,
        generation_at: int = 0,
        replies: int = 1,
    ) -> None:
        self.arguments = arguments
        self.key = key
        self.deadline = deadline
        self.source = source
        self.generation_at = generation_at
        self.replies = replies
        self.sent = 0.0
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fail(self, message: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(EngineUnavailable(message))


class RedisConnection:
    """One connection, until it breaks; it does not reconnect.

    Requests that are sent within one turn of the event loop, or while the socket accepts no more, go out in
    one write. No request waits for the answer to an earlier one.

    :param driver: the connection of redis-py, not yet connected.
    :param where: the server's host and port, for messages.
    :param on_message: called with each message of the topics that are subscribed to.
    :param on_moved: called with each request that was not carried out because another node of the cluster
        has its key.
    :param on_close: called once, with the reason, when the connection is closed.
    """

    def __init__(
        self,
        driver: AbstractConnection,
        where: str,
        on_message: OnMessage,
        on_moved: Callable[[Request], None],
        on_close: Callable[[str], None],
    ) -> None:
        self.is_closed = False
        self.where = where
        self._driver = driver
        self._on_message = on_message
        self._on_moved = on_moved
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        # When the last reply was read.
        self._heard = 0.0
        self._unsent: list[Request] = []
        self._in_flight: deque[Request] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # Lifecycle

    async def connect(self) -> None:
        """Connect and log in.

        :raises EngineUnavailable: there is no connection within ``CONNECT_TIMEOUT`` seconds, the server
            refuses it, or it was closed meanwhile.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._driver.connect()  # type: ignore[no-untyped-call]
        except TimeoutError:
            await self._driver.disconnect(nowait=True)
            raise EngineUnavailable(
                f"Could not connect to Redis at {self.where} (no answer within {CONNECT_TIMEOUT:g} s)."
            ) from None
        except (RedisError, OSError) as exc:
            await self._driver.disconnect(nowait=True)
            raise EngineUnavailable(
                f"Could not connect to Redis at {self.where} ({str(exc).rstrip('.')})."
            ) from exc
        except BaseException:
            await self._driver.disconnect(nowait=True)
            raise
        if self.is_closed:
            # Closed while it connected, because another connection to the servers broke. close() could not
            # cancel the tasks, which are only started below.
            await self._driver.disconnect(nowait=True)
            raise EngineUnavailable(
                f"Could not connect to Redis at {self.where} (the connection was closed meanwhile)."
            )
        self._heard = self._loop.time()
        self._tasks = [self._loop.create_task(self._run(half)) for half in (self._read, self._write)]

    def check(self, now: float) -> None:
        """Fail the requests that are overdue, and close the connection if the server does not answer."""
        for request in chain(self._in_flight, self._unsent):
            if request.deadline > now:
                break
            request.fail(f"Redis at {self.where} gave no answer within {ANSWER_TIMEOUT:g} s.")
        if self._in_flight and max(self._heard, self._in_flight[0].sent) + ANSWER_TIMEOUT < now:
            self.close(f"no answer within {ANSWER_TIMEOUT:g} s")

    def close(self, reason: str) -> None:
        """Close the connection, and fail all requests that have no answer yet."""
        if self.is_closed:
            return
        reason = reason.rstrip(".")
        self.is_closed = True
        for task in self._tasks:
            task.cancel()
        for request in (*self._in_flight, *self._unsent):
            request.fail(f"Lost the connection to Redis at {self.where} before the answer ({reason}).")
        self._in_flight.clear()
        self._unsent.clear()
        self._on_close(reason)

    async def wait_closed(self) -> None:
        """Wait until the tasks of a closed connection have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks)
            # The tasks disconnect too, unless they were cancelled before they had begun.
            await self._driver.disconnect(nowait=True)

    # Requests

    def send(self, request: Request) -> None:
        """Send ``request`` with the next write."""
        if self.is_closed:
            # It would never be answered.
            request.fail(f"Could not send a command to Redis at {self.where} (the connection is closed).")
            return
        self._unsent.append(request)
        self._wake.set()

    async def ask(self, *arguments: bytes | str | int, replies: int = 1) -> Any:
        """Send a command, and return its answer.

        :raises EngineUnavailable: the server answers with an error, or the connection is closed.
        """
        request = Request([*arguments], replies=replies)
        self.send(request)
        return await request.answer

    # Internal

    async def _run(self, half: Callable[[], Any]) -> None:
        try:
            await half()
        except (RedisError, OSError) as exc:
            self.close(str(exc) or type(exc).__name__)
        except Exception as exc:
            logger.exception("Could not understand Redis at %s; closing the connection.", self.where)
            self.close(f"{type(exc).__name__}: {exc}")
        finally:
            await self._driver.disconnect(nowait=True)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            # Requests whose callers were cancelled meanwhile are not sent any more.
            requests = [request for request in self._unsent if not request.answer.done()]
            self._unsent.clear()
            if not requests:
                continue
            packed = self._driver.pack_commands([request.arguments for request in requests])
            now = self._loop.time()
            for request in requests:
                request.sent = now
            self._in_flight.extend(requests)
            await self._driver.send_packed_command(packed, check_health=False)

    async def _read(self) -> None:
        read = self._driver.read_response
        while not self.is_closed:
            try:
                # By default redis-py would disconnect on an error, and the next write would connect again.
                reply = await read(disconnect_on_error=False)
            except ResponseError as exc:
                self._heard = self._loop.time()
                self._refused(exc)
                continue
            self._heard = self._loop.time()
            if type(reply) is list and reply and reply[0] in MESSAGES:
                self._on_message(reply[1], reply[2])
                continue
            request = self._in_flight[0] if self._in_flight else None
            if request is None or (
                type(reply) is list
                and reply[:1] == [b"sunsubscribe"]
                and request.arguments[0] != "SUNSUBSCRIBE"
            ):
                # Not the reply to a request: a node of a cluster pushes it when another node takes over.
                self.close(MOVED)
                break
            request.replies -= 1
            if request.replies == 0:
                self._in_flight.popleft()
                if not request.answer.done():
                    request.answer.set_result(reply)

    def _refused(self, exc: ResponseError) -> None:
        """Handle the server's error in reply to the oldest request."""
        request = self._in_flight.popleft()
        if isinstance(exc, NoScriptError) and request.source is not None:
            command, _, *arguments = request.arguments
            assert command == "EVALSHA"
            request.arguments = ["EVAL", request.source, *arguments]
            request.source = None
            self.send(request)
            return
        if isinstance(exc, MovedError):
            self._on_moved(request)
            self.close(MOVED)
            return
        request.fail(f"Redis at {self.where} answered a command with an error: {str(exc).rstrip('.')}.")
        if isinstance(exc, ReadOnlyError) or "READONLY" in str(exc):
            # The server has become a replica. After reconnecting, the new primary may be there.
            self.close(str(exc))
