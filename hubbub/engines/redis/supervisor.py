"""The supervisor: one session after another, and what waits while there is none."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from hubbub.engines.base import Diagnosis, Sink
from hubbub.engines.reconnect import RETRY_MAX, Backoff
from hubbub.engines.redis.address import Target
from hubbub.engines.redis.connection import ANSWER_TIMEOUT, Request, deadline
from hubbub.engines.redis.connections import Session, ignore
from hubbub.engines.redis.scripts import Script
from hubbub.engines.redis.topology import Locator
from hubbub.exceptions import EngineUnavailable, HubNotRunning

logger = logging.getLogger("hubbub.engines.redis")

#: Seconds between two looks at what is overdue, and between two questions whether the servers are there.
TICK = 0.25
PING_INTERVAL = 2.0

#: Called with a channel and what came in it.
OnPayload: TypeAlias = Callable[[str, bytes], None]


class Supervisor:
    """Keeps a session open, and says so when there is none.

    A command is sent at once, or waits for a session for at most ``ANSWER_TIMEOUT`` seconds.

    :param target: what the URL names.
    :param on_payload: called with what comes in the channels that are subscribed to.
    :param prepare: called with each session before anything is heard in it, or asked for by others.
    """

    def __init__(
        self, target: Target, on_payload: OnPayload, prepare: Callable[[Session], Awaitable[None]]
    ) -> None:
        self._target = target
        self._on_payload = on_payload
        self._prepare = prepare
        self._locator = Locator(target)
        self._sink: Sink | None = None
        #: ``None`` while the engine is away.
        self.session: Session | None = None
        #: Rises whenever the servers may have lost some of what they were told: they were restarted, or
        #: others took over.
        self.generation = 0
        # The session, or the one that is about to be.
        self._latest: Session | None = None
        # What is subscribed to: the channel for each topic.
        self._channels: dict[bytes, str] = {}
        # What waits for a session, the oldest first.
        self._waiting: deque[Request] = deque()
        # Why there is no session, in words; and set when one has ended.
        self._trouble = ""
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked = self._pinged = 0.0

    async def start(self, sink: Sink) -> None:
        """Open the first session.

        :raises EngineUnavailable: there is nobody.
        """
        if self._sink is not None:
            raise RuntimeError("Expected start() to be called once before stop(), but got it twice.")
        self._lost.clear()
        self.session = await self._open()
        self.generation += 1
        self._sink = sink
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._supervise())
        self._ticked = self._pinged = loop.time()
        self._ticker = loop.call_later(TICK, self._tick)

    async def stop(self) -> None:
        self._sink = None
        if self._ticker is not None:
            self._ticker.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        session, self.session = self.session, None
        if session is not None:
            await session.close("the engine stopped")
        while self._waiting:
            self._waiting.popleft().fail("Expected Redis, but the engine stopped.")
        self._channels.clear()

    def check_started(self) -> None:
        """Whether it has been started.

        :raises HubNotRunning: it has not been started.
        """
        if self._sink is None:
            raise HubNotRunning("The Redis engine has not been started.")

    # Commands

    def run(self, script: Script, keys: Sequence[str], *arguments: bytes | str | int) -> asyncio.Future[Any]:
        """Run a script where its keys lie."""
        return self._send(script.request(keys, arguments, deadline()))

    def ask(self, command: str, key: str, *arguments: bytes | str | int) -> asyncio.Future[Any]:
        """Carry out a command where its key lies."""
        return self._send(Request([command, key, *arguments], key.encode(), deadline()))

    async def inspect(self) -> Sequence[Diagnosis]:
        """What is to be said about the servers."""
        self.check_started()
        return await self.session.inspect() if self.session is not None else ()

    def _send(self, request: Request) -> asyncio.Future[Any]:
        self.check_started()
        if self.session is None:
            self._waiting.append(request)
        else:
            self.session.send(request)
        return request.answer

    # Subscriptions

    async def subscribe(self, topic: bytes, channel: str) -> None:
        """Have what comes in ``topic`` handed over as the channel's."""
        self.check_started()
        self._channels[topic] = channel
        # Without a session, the next one begins by subscribing to all there is.
        if self.session is not None:
            await self.session.subscribe(topic)

    def unsubscribe(self, topic: bytes) -> asyncio.Future[Any] | None:
        """Hand over nothing more. Returns what tells when the server knows, if it can be told; nobody needs
        to wait for it."""
        if self._channels.pop(topic, None) is None or self.session is None:
            return None
        answer = self.session.unsubscribe(topic)
        answer.add_done_callback(ignore)
        return answer

    def _on_message(self, topic: bytes, payload: bytes) -> None:
        channel = self._channels.get(topic)
        if channel is not None and self._sink is not None:
            self._on_payload(channel, payload)

    # Sessions

    async def _supervise(self) -> None:
        """Open a new session whenever one has ended."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        since = loop.time()
        identity = self.session.identity if self.session is not None else None
        while True:
            await self._lost.wait()
            self._lost.clear()
            if loop.time() - since > RETRY_MAX:
                backoff.reset()
            reason = f"Lost Redis at {self._target.where}: {self._trouble}."
            logger.warning("%s", reason)
            self._tell(lambda sink, reason=reason: sink.on_disconnect(reason))  # type: ignore[misc]
            while True:
                await backoff.wait()
                try:
                    session = await self._open()
                    break
                except EngineUnavailable as exc:
                    self._trouble = str(exc)
                    logger.info("Still without Redis: %s", exc)
                except Exception as exc:
                    # Whatever it is, nobody else would try again.
                    self._trouble = f"{type(exc).__name__}: {exc}"
                    logger.exception("Could not connect to Redis at %s.", self._target.where)
            since = loop.time()
            # Nothing is awaited between the last look at what is subscribed to, in Session.open(), and this.
            self.session = session
            if session.identity is None or session.identity != identity:
                self.generation += 1
            identity = session.identity
            logger.info("Redis at %s is back.", self._target.where)
            while self._waiting:
                session.send(self._waiting.popleft())
            self._tell(lambda sink: sink.on_reconnect())

    async def _open(self) -> Session:
        """A session that is subscribed to everything.

        :raises EngineUnavailable: that is not to be had.
        """
        layout = await self._locator.locate()
        session = Session(layout, self._target.where, self._on_message, self._waiting.append, self._ended)
        self._latest = session
        await session.open(self._channels.keys(), self._prepare)
        return session

    def _ended(self, session: Session) -> None:
        if session is self.session:
            self.session = None
            self._trouble = session.trouble
            self._lost.set()

    def _tell(self, what: Callable[[Sink], None]) -> None:
        if self._sink is None:
            return
        try:
            what(self._sink)
        except Exception:
            logger.exception("Could not tell about Redis at %s.", self._target.where)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(TICK, self._tick)
        now = loop.time()
        was_late = now - self._ticked > 1
        self._ticked = now
        if was_late:
            # This process was kept from reading: what seems overdue may be there already.
            return
        while self._waiting and self._waiting[0].deadline <= now:
            self._waiting.popleft().fail(
                f"Expected Redis at {self._target.where} to come back within {ANSWER_TIMEOUT:g} s, "
                f"but it did not: {self._trouble}"
            )
        if self.session is not None and now - self._pinged >= PING_INTERVAL:
            self._pinged = now
            self.session.ping()
        if self._latest is not None:
            self._latest.check(now)
