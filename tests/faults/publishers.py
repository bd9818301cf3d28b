"""Clients of ``tests/apps/streams.py`` that publish during faults and note the outcome of each message."""

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

#: Seconds that a publisher waits for an answer: longer than an engine takes to report an outage.
PATIENCE = 8.0


class NotSent(Exception):
    """There was no connection to send the message on."""


class NoAnswer(Exception):
    """The message was sent, and its outcome is unknown."""


class Way(ABC):
    """A way to send messages to a server.

    :param base: the server, such as ``"127.0.0.1:8000"``.
    """

    #: Number of messages under way at a time.
    at_once: int

    @abstractmethod
    def __init__(self, base: str) -> None: ...

    @abstractmethod
    async def publish(self, message: Message) -> Position:
        """Publish a message and return its position.

        :raises NotSent: it was not published.
        :raises NoAnswer: it may have been published.
        """

    @abstractmethod
    async def close(self) -> None: ...


class OverHTTP(Way):
    """Send a request for each message."""

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
    """Send all messages on one connection, which is replaced when it is lost."""

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
            # A late answer would be taken for that of the next message.
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
        case {"unavailable": reason}:
            raise NoAnswer(reason)
    raise AssertionError(f"Expected a position or an outage, but got {answer}.")


class Publisher:
    """Publishes numbered messages at a steady pace until :meth:`finish`.

    :param name: the beginning of its messages.
    :param random: chooses the pauses.
    :param pause: seconds between two messages, on average.
    :param is_patient: gives each message an idempotency key, and publishes it again until it is accepted;
        otherwise it publishes each once.
    :param is_received: returns whether a client has received a message.
    """

    def __init__(
        self,
        way: Way,
        name: str,
        random: Random,
        pause: float,
        is_patient: bool,
        is_received: Callable[[str], bool],
    ) -> None:
        self.messages: list[Message] = []
        self.accepted = 0
        #: Number of repeated publications, and of those whose message a client had received before.
        self.retries = 0
        self.suppressed = 0
        self._way = way
        self._name = name
        self._random = random
        self._pause = pause
        self._is_patient = is_patient
        self._is_received = is_received
        self._is_finishing = False
        # Set and replaced with each accepted message.
        self._progress = asyncio.Event()
        # The last accepted message.
        self._last: Message | None = None
        self._task = asyncio.create_task(self._run())

    async def progress(self, count: int) -> None:
        """Wait until ``count`` more messages are accepted."""
        wanted = self.accepted + count
        while self.accepted < wanted:
            waiting = asyncio.create_task(self._progress.wait())
            try:
                await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            if self._task.done():
                # It ends by an error only, which is raised here.
                self._task.result()

    async def finish(self) -> None:
        """Publish no new message, and wait for the outcome of each."""
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
                self.suppressed += self._is_received(message.text)

    def _accept(self, message: Message, position: Position) -> None:
        message.fate = Fate.ACCEPTED
        message.positions.add(position)
        self.accepted += 1
        self._last = message
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()
