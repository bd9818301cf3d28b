"""Clients of ``tests/apps/streams.py`` that publish whatever happens, and note what became of it."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import httpx2
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

from hubbub import Position
from tests.clients import connect
from tests.faults.ledger import Fate, Message

#: Seconds after which a publisher takes it that there will be no answer: longer than engines take to say so.
PATIENCE = 8.0


class NotSent(Exception):
    """Nobody was there to send it to."""


class NoAnswer(Exception):
    """It was sent, and what became of it is not known."""


class Way(ABC):
    """How messages get to a server.

    :param base: the server, such as ``"127.0.0.1:8000"``.
    """

    #: How many may be on their way at once.
    at_once: int

    @abstractmethod
    def __init__(self, base: str) -> None: ...

    @abstractmethod
    async def publish(self, message: Message) -> Position:
        """
        :raises NotSent: certainly not.
        :raises NoAnswer: maybe.
        """

    @abstractmethod
    async def close(self) -> None: ...


class OverHTTP(Way):
    """A request for each message."""

    at_once = 30

    def __init__(self, base: str) -> None:
        self._url = f"http://{base}/publish"
        self._client = httpx2.AsyncClient(timeout=PATIENCE)

    async def publish(self, message: Message) -> Position:
        try:
            answer = await self._client.post(self._url, json={"text": message.text, "key": message.key})
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
            raise NotSent from exc
        except httpx2.TransportError as exc:
            raise NoAnswer from exc
        if answer.status_code != 200:
            raise NoAnswer(f"{answer.status_code} {answer.text}")
        return _accepted(answer.json())

    async def close(self) -> None:
        await self._client.aclose()


class OverWebSocket(Way):
    """One connection for all messages, made anew when it is lost."""

    at_once = 1

    def __init__(self, base: str) -> None:
        self._url = f"ws://{base}/publish"
        self._client: ClientConnection | None = None

    async def publish(self, message: Message) -> Position:
        if self._client is None:
            try:
                self._client = await connect(self._url, open_timeout=PATIENCE)
            except (OSError, WebSocketException) as exc:
                raise NotSent from exc
        try:
            async with asyncio.timeout(PATIENCE):
                await self._client.send(json.dumps({"text": message.text, "key": message.key}))
                answer = json.loads(await self._client.recv())
        except (OSError, WebSocketException) as exc:
            # Should an answer come late, it is not to be taken for that of the next one.
            self._client.transport.abort()
            self._client = None
            raise NoAnswer from exc
        return _accepted(answer)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


def _accepted(answer: dict[str, Any]) -> Position:
    match answer:
        case {"accepted": [offset, epoch]}:
            return Position(offset, epoch)
        case {"unavailable": why}:
            raise NoAnswer(why)
    raise AssertionError(f"Expected a position or that there is none to be had, but got {answer}.")


class Publisher:
    """Publishes numbered messages at a steady pace, until it is told to finish.

    :param name: begins its messages.
    :param random: of the pace, and of when it tries again.
    :param pause: seconds between two messages, on average.
    :param is_patient: gives each message an idempotency key, and publishes it again until it is accepted;
        otherwise each is tried once.
    :param is_heard: whether some client has a message already.
    """

    def __init__(
        self,
        way: Way,
        name: str,
        random: Random,
        pause: float,
        is_patient: bool,
        is_heard: Callable[[str], bool],
    ) -> None:
        self.messages: list[Message] = []
        self.accepted = 0
        #: Times that a message was published again, and those at which it had been heard already.
        self.retries = 0
        self.suppressed = 0
        self._way = way
        self._name = name
        self._random = random
        self._pause = pause
        self._is_patient = is_patient
        self._is_heard = is_heard
        self._is_finishing = False
        # Set, and made anew, with every message that is accepted.
        self._progress = asyncio.Event()
        # The last message that was accepted before another was sent.
        self._last: Message | None = None
        self._task = asyncio.create_task(self._run())

    async def progress(self, count: int) -> None:
        """Wait until so many more messages than now have been accepted."""
        wanted = self.accepted + count
        while self.accepted < wanted:
            waiting = asyncio.create_task(self._progress.wait())
            try:
                await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            if self._task.done():
                # With what it failed, for it does not end by itself.
                self._task.result()

    async def finish(self) -> None:
        """Publish nothing new, and wait until it is known of each message what became of it."""
        self._is_finishing = True
        await self._task

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._way.close()

    async def _run(self) -> None:
        free = asyncio.Semaphore(self._way.at_once)

        async def publish(message: Message) -> None:
            try:
                await self._publish(message)
            finally:
                free.release()

        async with asyncio.TaskGroup() as group:
            while not self._is_finishing:
                await free.acquire()
                text = f"{self._name}:{len(self.messages)}"
                message = Message(text, text if self._is_patient else None, after=self._last)
                self.messages.append(message)
                group.create_task(publish(message))
                await asyncio.sleep(2 * self._pause * self._random.random())

    async def _publish(self, message: Message) -> None:
        is_sent = False
        while True:
            try:
                position = await self._way.publish(message)
            except NotSent:
                if not self._is_patient:
                    message.fate = Fate.REFUSED
            except NoAnswer:
                is_sent = True
            else:
                self._accept(message, position)
                return
            if not self._is_patient:
                return
            await asyncio.sleep(0.1 * self._random.random())
            if is_sent:
                self.retries += 1
                self.suppressed += self._is_heard(message.text)

    def _accept(self, message: Message, position: Position) -> None:
        message.fate = Fate.ACCEPTED
        message.positions.add(position)
        self.accepted += 1
        self._last = message
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()
