"""The queued path over a ``websocket.send`` that completes at once, suspends, fails, or needs a task."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any

import anyio
import pytest
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame
from hubbub.core.outbox import Outbox
from hubbub.core.publication import Position, Publication
from hubbub.core.subscriber import Start
from hubbub.engines.memory import MemoryEngine
from hubbub.node.node import Node
from hubbub.protocols.plain import PLAIN
from hubbub.protocols.websocket import WebSocketBatch, WebSocketMessage
from hubbub.transports.asgi import ASGITransport
from hubbub.transports.writer import Writer
from hubbub.types import SlowConsumer
from tests.clients import DEADLINE
from tests.transports.owner import SlowOwner

COST = len("1") + 256


def batch(*texts: str, channel: str | None = "chat") -> Batch:
    return WebSocketBatch([WebSocketMessage("text", text.encode()) for text in texts], channel)


class Socket:
    """As much of a WebSocket as the transport needs.

    :param always_suspends: whether ``send`` suspends even when the client keeps up.
    """

    def __init__(self, *, always_suspends: bool = False) -> None:
        self.sent: list[str | tuple[int, str]] = []
        #: While it is clear, the client takes nothing.
        self.takes = asyncio.Event()
        self.takes.set()
        self.always_suspends = always_suspends
        self.error: BaseException | None = None
        self.needs_task = False
        self.tasks: set[asyncio.Task[Any]] = set()

    async def send(self, message: dict[str, Any]) -> None:
        if self.needs_task:
            async with asyncio.timeout(DEADLINE):
                await asyncio.sleep(0)
        self.tasks.update(filter(None, [asyncio.current_task()]))
        if self.always_suspends:
            await asyncio.sleep(0)
        if not self.takes.is_set():
            await self.takes.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message["text"])

    async def close(self, code: int, reason: str) -> None:
        self.sent.append((code, reason))


class Rig:
    def __init__(
        self,
        *,
        limit: int = 100_000,
        policy: SlowConsumer = "disconnect",
        always_suspends: bool = False,
    ) -> None:
        self.socket = Socket(always_suspends=always_suspends)
        self.owner = SlowOwner()
        websocket: WebSocket = self.socket  # type: ignore[assignment]
        self.writer = Writer("ann", ASGITransport(websocket), Outbox(limit, policy), self.owner)
        self.owner.writer = self.writer

    @property
    def sent(self) -> list[str | tuple[int, str]]:
        return self.socket.sent

    async def has_sent(self, count: int) -> None:
        """Wait until ``count`` messages are sent."""
        async with asyncio.timeout(DEADLINE):
            while len(self.sent) < count:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_a_client_that_keeps_up_costs_no_task() -> None:
    rig = Rig()
    before = asyncio.all_tasks()
    for number in range(100):
        rig.writer.send(batch(str(number), f"{number}b"))
    # Nothing has been awaited.
    assert rig.sent == [text for number in range(100) for text in (str(number), f"{number}b")]
    assert asyncio.all_tasks() == before
    assert rig.writer.backlog == 0


async def test_a_send_that_is_suspended_is_finished_by_a_task_and_overtaken_by_nothing() -> None:
    rig = Rig()
    rig.writer.send(batch("0"))
    rig.socket.takes.clear()
    rig.writer.send(batch("1", "2"))
    rig.writer.send(batch("3"))
    assert rig.sent == ["0"]
    assert rig.writer.backlog == 3 * COST
    assert rig.writer.stalled(asyncio.get_running_loop().time() + 10) >= 10
    rig.socket.takes.set()
    await rig.has_sent(4)
    rig.writer.send(batch("4"))
    await rig.has_sent(5)
    assert rig.sent == ["0", "1", "2", "3", "4"]
    assert rig.writer.backlog == 0
    assert rig.writer.stalled(asyncio.get_running_loop().time() + 10) == 0
    # The client keeps up again: no task is needed.
    rig.writer.send(batch("5"))
    assert rig.sent[-1] == "5"


async def test_a_server_that_always_suspends_gets_one_task_for_a_burst() -> None:
    rig = Rig(always_suspends=True)
    for burst in range(3):
        for number in range(50):
            rig.writer.send(batch(f"{burst} {number}"))
        await rig.has_sent((burst + 1) * 50)
        await asyncio.sleep(0)
    assert rig.sent == [f"{burst} {number}" for burst in range(3) for number in range(50)]
    # The first send of each burst begins without a task, and within this test.
    assert len(rig.socket.tasks - {asyncio.current_task()}) == 3


async def test_the_outbox_bounds_the_batches_that_wait_behind_a_suspended_send() -> None:
    rig = Rig(limit=3 * COST)
    rig.socket.takes.clear()
    for number in range(3):
        rig.writer.send(batch(str(number)))
    assert rig.owner.slow_disconnects == 0
    rig.writer.send(batch("3"))
    assert rig.owner.slow_disconnects == 1
    rig.socket.takes.set()
    await rig.writer.ended(20)
    # The message that was being sent arrives; the close frame is the last.
    assert rig.sent == ["0", (3008, f"slow: more than {3 * COST} bytes waiting")]
    assert rig.writer.backlog == 0


async def test_the_close_frame_is_the_last() -> None:
    for suspends in (False, True):
        rig = Rig(always_suspends=suspends)
        rig.writer.send(batch("0"))
        rig.writer.send(batch("1"))
        rig.writer.end(1000, "bye")
        rig.writer.send(batch("2"))
        await rig.writer.ended(20)
        assert rig.sent == ["0", "1", (1000, "bye")]
        assert rig.writer.is_gone


async def test_a_client_that_is_gone_is_cut() -> None:
    for error in (WebSocketDisconnect(1006), OSError("reset"), RuntimeError("closed")):
        for suspends in (False, True):
            rig = Rig(always_suspends=suspends)
            rig.writer.send(batch("0"))
            await rig.has_sent(1)
            rig.socket.error = error
            rig.writer.send(batch("1"))
            async with asyncio.timeout(DEADLINE):
                while not rig.writer.is_gone:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            rig.writer.send(batch("2"))
            await rig.writer.ended(20)
            assert rig.sent == ["0"]


async def test_a_send_that_is_cancelled_by_the_server_is_the_end_of_this_client_alone() -> None:
    rig = Rig()
    rig.socket.error = asyncio.CancelledError()
    rig.writer.send(batch("0"))
    assert rig.writer.is_gone


async def test_a_send_that_needs_a_task_gets_one(caplog: pytest.LogCaptureFixture) -> None:
    """A middleware may use ``asyncio.timeout``, for example, which works in tasks only."""
    rig = Rig()
    rig.socket.needs_task = True

    for number in range(3):
        asyncio.get_running_loop().call_soon(rig.writer.send, batch(str(number)))
    await rig.has_sent(3)
    asyncio.get_running_loop().call_soon(rig.writer.send, batch("3"))
    await rig.has_sent(4)
    rig.writer.end(1000)
    await rig.writer.ended(20)
    assert rig.sent == ["0", "1", "2", "3", (1000, "")]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_send_that_needs_a_task_gets_one_where_a_task_writes() -> None:
    """A time limit would begin in the task that writes, and end in another."""
    rig = Rig()
    send = rig.socket.send

    async def limited(message: dict[str, Any]) -> None:
        with anyio.fail_after(60):
            await send(message)

    rig.socket.send = limited  # type: ignore[method-assign]
    rig.socket.takes.clear()
    me = asyncio.current_task()
    rig.writer.send(batch("0"))
    assert asyncio.current_task() is me
    rig.writer.send(batch("1"))
    rig.socket.takes.set()
    await rig.has_sent(2)
    rig.writer.end(1000)
    await rig.writer.ended(20)
    assert rig.sent == ["0", "1", (1000, "")]


async def test_a_send_begins_and_ends_in_one_context() -> None:
    """A middleware may set a context variable and reset it, as those that trace requests do."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    variable.set("connection")
    rig = Rig()
    seen = []
    send = rig.socket.send

    async def traced(message: dict[str, Any]) -> None:
        seen.append(variable.get())
        token = variable.set("send")
        try:
            await send(message)
        finally:
            variable.reset(token)

    rig.socket.send = traced  # type: ignore[method-assign]
    rig.socket.takes.clear()
    variable.set("another place")
    rig.writer.send(batch("0", "1"))
    rig.socket.takes.set()
    await rig.has_sent(2)
    await asyncio.sleep(0)
    rig.writer.send(batch("2"))
    assert rig.sent == ["0", "1", "2"]
    assert seen == ["connection"] * 3
    assert not rig.writer.is_gone


async def test_publications_are_sent_in_the_context_of_the_node() -> None:
    """Not in the context of the publisher, which is another request."""
    seen: list[str] = []
    place: ContextVar[str] = ContextVar("place", default="node")

    class Subscriber:
        id = "ann"
        recovers_in_pieces = True

        def write(self, batch: Batch) -> int:
            seen.append(place.get())
            return len(batch)

        def write_rest(self, batch: Batch, taken: int) -> None:
            raise AssertionError

        async def ready(self) -> int:
            raise AssertionError

        def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
            assert not missed

        def broken(self, channel: str, position: Position) -> bool:
            raise AssertionError

    node = Node(MemoryEngine("memory://"))
    await node.start()
    await node.join("chat", Subscriber(), form=PLAIN)
    place.set("publisher")
    await node.publish(Publication("chat", b"0", "text"))
    await asyncio.sleep(0)
    await node.stop(1001, "", 0)
    assert seen == ["node"]


async def test_a_writer_that_is_given_up_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    for turns in range(3):
        rig = Rig()
        rig.socket.takes.clear()
        rig.writer.send(batch("0"))
        for _ in range(turns):
            await asyncio.sleep(0)
        rig.writer.end(1001)
        await rig.writer.ended(0)
        assert asyncio.all_tasks() == before
        assert rig.sent == []


async def test_a_client_that_is_given_up_is_freed_without_the_garbage_collector() -> None:
    rig = Rig()
    rig.socket.takes.clear()
    rig.writer.send(batch("0", "1"))
    rig.writer.send(batch("2"))
    # The task of the transport waits for the client.
    await asyncio.sleep(0)
    rig.writer.end(1000)
    freed = weakref.ref(rig.socket)
    gc.collect()
    gc.disable()
    try:
        await rig.writer.ended(0)
        del rig
        await asyncio.sleep(0)
        assert freed() is None
    finally:
        gc.enable()


class Server:
    """The server's side of a WebSocket of Starlette: takes messages, or fails."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.error: Exception | None = None
        self.websocket = WebSocket({"type": "websocket", "headers": []}, self.receive, self.send)
        self.websocket.application_state = WebSocketState.CONNECTED

    async def receive(self) -> Any:
        raise AssertionError

    async def send(self, message: Any) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(message["type"] if "text" not in message else message["text"])

    def writer(self) -> Writer:
        return Writer("ann", ASGITransport(self.websocket), Outbox(1000, "disconnect"), SlowOwner())


async def test_a_socket_of_starlette_is_in_the_state_in_which_its_own_send_leaves_it() -> None:
    server = Server()
    writer = server.writer()
    writer.send(batch("0"))
    server.error = OSError("reset")
    writer.send(batch("1"))
    assert writer.is_gone
    assert server.websocket.application_state is WebSocketState.DISCONNECTED
    assert server.sent == ["0"]


async def test_nothing_is_sent_on_a_socket_that_the_application_has_closed() -> None:
    server = Server()
    writer = server.writer()
    await server.websocket.close()
    writer.send(batch("0"))
    await writer.ended(20)
    assert writer.is_gone
    assert server.sent == ["websocket.close"]


async def test_a_send_that_is_not_a_coroutine_function_is_called_by_starlette() -> None:
    server = Server()

    class Callable:
        def __call__(self, message: Any) -> Any:
            if server.error is not None:
                raise server.error
            return server.send(message)

    scope = server.websocket.scope
    server.websocket = WebSocket(scope, server.receive, Callable())
    server.websocket.application_state = WebSocketState.CONNECTED
    writer = server.writer()
    writer.send(batch("0"))
    server.error = OSError("reset")
    writer.send(batch("1"))
    assert writer.is_gone
    assert server.sent == ["0"]


async def test_a_send_that_the_application_has_wrapped_is_used() -> None:
    """By a method of its own class, or of the object itself."""
    seen: list[str] = []

    class Traced(WebSocket):
        async def send(self, message: Any) -> None:
            seen.append(message["text"])
            await super().send(message)

    server = Server()
    server.websocket = Traced(server.websocket.scope, server.receive, server.send)
    server.websocket.application_state = WebSocketState.CONNECTED
    server.writer().send(batch("0"))
    server = Server()
    send = server.websocket.send

    async def traced(message: Any) -> None:
        seen.append(message["text"])
        await send(message)

    server.websocket.send = traced  # type: ignore[method-assign]
    server.writer().send(batch("1"))
    assert seen == ["0", "1"]
    assert server.sent == ["1"]


async def test_a_send_that_was_replaced_in_the_class_of_starlette_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As tracing libraries do, which may be imported before or after this package."""
    seen: list[str] = []
    send = WebSocket.send

    @wraps(send)
    async def traced(self: WebSocket, message: Any) -> None:
        seen.append(message["text"])
        await send(self, message)

    monkeypatch.setattr(WebSocket, "send", traced)
    server = Server()
    server.writer().send(batch("0", "1"))
    assert (seen, server.sent) == (["0", "1"], ["0", "1"])
