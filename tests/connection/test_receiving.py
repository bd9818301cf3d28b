"""Receiving: one task at a time, until the connection ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.websockets import WebSocketDisconnect

from hubbub.connection.decoding import as_json
from hubbub.connection.receiving import Receiver
from hubbub.exceptions import InvalidMessage


class FakeSocket:
    """A socket that receives the messages that a test puts."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        return await self.messages.get()

    def text(self, text: str) -> None:
        self.messages.put_nowait({"type": "websocket.receive", "text": text})

    def disconnect(self, **details: Any) -> None:
        self.messages.put_nowait({"type": "websocket.disconnect", **details})


def rig() -> tuple[Receiver, FakeSocket]:
    socket: Any = FakeSocket()
    return Receiver(socket), socket


async def waiting(receiver: Receiver) -> asyncio.Task[str | bytes]:
    """A task that waits for a message."""
    task = asyncio.create_task(receiver.receive())
    await asyncio.sleep(0)
    return task


async def test_text_and_bytes_are_received_as_they_are() -> None:
    receiver, socket = rig()
    socket.text("")
    socket.messages.put_nowait({"type": "websocket.receive", "text": None, "bytes": b"x"})
    assert [await receiver.receive() for _ in range(2)] == ["", b"x"]


async def test_a_client_that_leaves_ends_the_connection_with_its_code() -> None:
    receiver, socket = rig()
    socket.disconnect(code=4001, reason="bye")
    for _ in range(2):
        with pytest.raises(WebSocketDisconnect) as ended:
            await receiver.receive()
        assert (ended.value.code, ended.value.reason) == (4001, "bye")
    assert receiver.client_left


async def test_details_of_a_disconnect_may_be_missing() -> None:
    receiver, socket = rig()
    socket.disconnect(reason=None)
    with pytest.raises(WebSocketDisconnect):
        await receiver.receive()
    assert receiver.ended == (1000, "")


async def test_the_end_wakes_a_task_that_waits() -> None:
    receiver, _ = rig()
    task = await waiting(receiver)
    receiver.end(1012, "restart")
    receiver.end(1000, "")
    with pytest.raises(WebSocketDisconnect) as ended:
        await task
    assert (ended.value.code, ended.value.reason) == (1012, "restart")
    assert not receiver.client_left
    assert not task.cancelling()


async def test_a_task_that_is_cancelled_as_well_stays_cancelled() -> None:
    receiver, _ = rig()
    task = await waiting(receiver)
    task.cancel()
    receiver.end(1012, "restart")
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_task_at_a_time_receives() -> None:
    receiver, socket = rig()
    task = await waiting(receiver)
    with pytest.raises(RuntimeError, match="one task at a time"):
        await receiver.receive()
    socket.text("hi")
    assert await task == "hi"
    # After a cancellation, the next task may receive.
    cancelled = await waiting(receiver)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    socket.text("again")
    assert await receiver.receive() == "again"


async def test_a_loop_answers_wrong_messages_and_ends_with_the_connection() -> None:
    receiver, socket = rig()
    errors: list[InvalidMessage] = []

    async def answer(error: InvalidMessage) -> None:
        errors.append(error)

    for text in ("1", "nonsense", "[2]"):
        socket.text(text)
    socket.disconnect()
    received: list[object] = []
    assert not receiver.is_iterating
    async for message in receiver.iterate(receiver.receive, as_json, answer):
        assert receiver.is_iterating
        received.append(message)
    assert received == [1, [2]]
    assert [error.code for error in errors] == [1007]
    assert not receiver.is_iterating


async def test_a_loop_that_is_left_is_not_running() -> None:
    receiver, socket = rig()
    socket.text("1")

    async def answer(error: InvalidMessage) -> None:
        raise AssertionError("no message is wrong")

    loop: Any = receiver.iterate(receiver.receive, as_json, answer)
    assert await anext(loop) == 1
    assert receiver.is_iterating
    await loop.aclose()
    assert not receiver.is_iterating
