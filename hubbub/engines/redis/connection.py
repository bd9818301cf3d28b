"""A link: one connection to a Redis server, and what is on its way there and back."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeAlias

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import MovedError, NoScriptError, ReadOnlyError, RedisError, ResponseError

from hubbub.exceptions import EngineUnavailable

logger = logging.getLogger("hubbub.engines.redis")

#: Seconds until a connection must stand, and until it must answer.
CONNECT_TIMEOUT = 5.0
ANSWER_TIMEOUT = 5.0

#: What Redis sends unasked in reply to SUBSCRIBE and SSUBSCRIBE.
MESSAGES = (b"message", b"smessage")

#: Called with the Redis channel and the payload.
OnMessage: TypeAlias = Callable[[bytes, bytes], None]


def deadline() -> float:
    """When a request that is made now is given up, by the event loop's clock."""
    return asyncio.get_running_loop().time() + ANSWER_TIMEOUT


class Request:
    """A command that waits for its answer.

    :param arguments: the command and its arguments.
    :param key: the key, or the channel in Redis, by which a cluster finds the node for it.
    :param deadline: when it is given up, by the event loop's clock.
    :param source: of the script that the arguments name, for a server that does not know it.
    :param generation_at: where among the arguments the generation of the server belongs that they are sent
        to; 0 for nowhere.
    :param replies: how many there will be; the answer is the last.
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


class Link:
    """One connection, from when it stands until it breaks; it does not mend itself.

    What is sent within one turn of the event loop, or while the socket takes no more, goes out in one write.
    Nothing waits for the answer to what went before.

    :param connection: not yet connected.
    :param where: the server's name in messages of errors.
    :param on_message: called with what comes in channels that were subscribed to.
    :param on_moved: called with what was not carried out because another node of the cluster is to.
    :param on_close: called once, with the reason, when the connection is of no more use.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        where: str,
        on_message: OnMessage,
        on_moved: Callable[[Request], None],
        on_close: Callable[[str], None],
    ) -> None:
        self.is_closed = False
        self._connection = connection
        self.where = where
        self._on_message = on_message
        self._on_moved = on_moved
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._heard = 0.0
        self._unsent: list[Request] = []
        self._in_flight: deque[Request] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        """
        :raises EngineUnavailable: there is no connection within ``CONNECT_TIMEOUT`` seconds, the server
            does not want us, or the link was closed meanwhile.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._connection.connect()  # type: ignore[no-untyped-call]
        except TimeoutError:
            await self._connection.disconnect(nowait=True)
            raise EngineUnavailable(
                f"Expected Redis at {self.where}, but got no answer within {CONNECT_TIMEOUT:g} s."
            ) from None
        except (RedisError, OSError) as exc:
            await self._connection.disconnect(nowait=True)
            raise EngineUnavailable(f"Expected Redis at {self.where}, but got: {exc}") from exc
        except BaseException:
            await self._connection.disconnect(nowait=True)
            raise
        if self.is_closed:
            # Meanwhile, with the others of its session. Nobody would end the tasks.
            await self._connection.disconnect(nowait=True)
            raise EngineUnavailable(f"Expected a connection to Redis at {self.where}, but it was given up.")
        self._heard = self._loop.time()
        self._tasks = [self._loop.create_task(self._run(half)) for half in (self._read, self._write)]

    def send(self, request: Request) -> None:
        if self.is_closed:
            # Nobody would ever answer it.
            request.fail(f"Expected an answer from Redis at {self.where}, but the connection is closed.")
            return
        self._unsent.append(request)
        self._wake.set()

    async def ask(self, *arguments: bytes | str | int, replies: int = 1) -> Any:
        """The answer to a command.

        :raises EngineUnavailable: the server answers with an error, or the link closes.
        """
        request = Request([*arguments], replies=replies)
        self.send(request)
        return await request.answer

    def check(self, now: float) -> None:
        """Give up what is overdue; and the link, if nothing has come for too long although it should."""
        for request in chain(self._in_flight, self._unsent):
            if request.deadline > now:
                break
            request.fail(
                f"Expected an answer from Redis at {self.where}, but got none within {ANSWER_TIMEOUT:g} s."
            )
        if self._in_flight and max(self._heard, self._in_flight[0].sent) + ANSWER_TIMEOUT < now:
            self.close(f"no answer within {ANSWER_TIMEOUT:g} s")

    def close(self, reason: str) -> None:
        """Let go of the connection. What has no answer yet will not get one."""
        if self.is_closed:
            return
        reason = reason.rstrip(".")
        self.is_closed = True
        for task in self._tasks:
            task.cancel()
        for request in (*self._in_flight, *self._unsent):
            request.fail(f"Expected an answer from Redis at {self.where}, but lost it: {reason}.")
        self._in_flight.clear()
        self._unsent.clear()
        self._on_close(reason)

    async def wait_closed(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)
            # They do so too, unless they were cancelled before they had begun.
            await self._connection.disconnect(nowait=True)

    # Inside

    async def _run(self, half: Callable[[], Any]) -> None:
        try:
            await half()
        except (RedisError, OSError) as exc:
            self.close(str(exc) or type(exc).__name__)
        except Exception as exc:
            logger.exception("Could not understand Redis at %s.", self.where)
            self.close(f"{type(exc).__name__}: {exc}")
        finally:
            await self._connection.disconnect(nowait=True)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            # Who was cancelled meanwhile does not want it sent any more.
            requests = [request for request in self._unsent if not request.answer.done()]
            self._unsent.clear()
            if not requests:
                continue
            packed = self._connection.pack_commands([request.arguments for request in requests])
            now = self._loop.time()
            for request in requests:
                request.sent = now
            self._in_flight.extend(requests)
            await self._connection.send_packed_command(packed, check_health=False)

    async def _read(self) -> None:
        read = self._connection.read_response
        while not self.is_closed:
            try:
                # Left to itself, it would close the connection, and the next write would open another one.
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
                # Nobody asked for this. A cluster says it when another node takes over.
                self.close("the channels have moved to another node")
                break
            request.replies -= 1
            if request.replies == 0:
                self._in_flight.popleft()
                if not request.answer.done():
                    request.answer.set_result(reply)

    def _refused(self, exc: ResponseError) -> None:
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
            self.close("the channels have moved to another node")
            return
        request.fail(f"Expected Redis at {self.where} to carry out a command, but got: {exc}")
        if isinstance(exc, ReadOnlyError) or "READONLY" in str(exc):
            # It has become a replica: whoever is the primary now may be found in its place.
            self.close(str(exc))
