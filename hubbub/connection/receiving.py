"""Receiving: the messages of one client, until its connection ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from hubbub.codes import CloseCode
from hubbub.connection.ending import Ending
from hubbub.exceptions import InvalidMessage

T = TypeVar("T")


class Receiver(Ending):
    """Receives from one socket, in one task at a time.

    :param websocket: an accepted socket.
    """

    __slots__ = ("_loops", "_websocket")

    def __init__(self, websocket: WebSocket) -> None:
        super().__init__()
        self._websocket = websocket
        # ``iter_*`` loops that are running.
        self._loops = 0

    @property
    def is_iterating(self) -> bool:
        """Whether a loop is receiving, which ends by itself when the connection ends."""
        return self._loops > 0

    async def receive(self) -> str | bytes:
        """Wait for the next message.

        :raises WebSocketDisconnect: the connection has ended, or ends.
        :raises RuntimeError: another task is waiting already.
        """
        if self.ended is not None:
            raise WebSocketDisconnect(*self.ended)
        if self._task is not None:
            raise RuntimeError("Expected one task at a time to receive, but another one is waiting already.")
        message = await self._unless_ended(self._websocket.receive())
        if message is None:
            assert self.ended is not None
            raise WebSocketDisconnect(*self.ended)
        if message["type"] == "websocket.disconnect":
            self.client_left = True
            self.ended = (message.get("code", CloseCode.NORMAL), message.get("reason") or "")
            raise WebSocketDisconnect(*self.ended)
        text: str | None = message.get("text")
        data: str | bytes = message["bytes"] if text is None else text
        return data

    async def iterate(
        self,
        receive: Callable[[], Awaitable[str | bytes]],
        decode: Callable[[str | bytes], T],
        answer: Callable[[InvalidMessage], Awaitable[None]],
    ) -> AsyncIterator[T]:
        """Yield decoded messages until the connection ends.

        :param receive: waits for the next message, as :meth:`receive` does.
        :param decode: raises :class:`InvalidMessage` for a message that does not fit.
        :param answer: sends the client an error message for it.
        """
        self._loops += 1
        try:
            while True:
                try:
                    message = decode(await receive())
                except InvalidMessage as exc:
                    await answer(exc)
                else:
                    yield message
        except WebSocketDisconnect:
            pass
        finally:
            self._loops -= 1
