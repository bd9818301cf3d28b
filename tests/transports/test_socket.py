"""The direct path into an asyncio transport that pauses when a test says so, and on real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import BuiltinMethodType
from typing import Any

import pytest
import uvloop
from starlette.websockets import WebSocket

from hubbub.core.outbox import Outbox
from hubbub.protocols.websocket import WebSocketBatch, WebSocketMessage
from hubbub.transports.socket import SocketTransport
from hubbub.transports.writer import Writer
from hubbub.types import SlowConsumer
from tests.clients import DEADLINE
from tests.transports.owner import SlowOwner


def batch(text: str, channel: str | None = "chat") -> WebSocketBatch:
    return WebSocketBatch((WebSocketMessage("text", text.encode()),), channel)


class Transport(asyncio.Transport):
    """An asyncio transport that keeps the bytes, and pauses after each batch while ``is_slow``."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []
        self.hub_transport: SocketTransport | None = None
        self.is_slow = False
        self.is_aborted = False
        self.is_lost = False
        self.held = 0

    def write(self, data: Any) -> None:
        # A memoryview of the whole batch.
        written: Any = data.obj if isinstance(data, memoryview) else data
        self.taken.extend(message.data.decode() for message in written.messages)
        if self.is_slow and self.hub_transport is not None:
            self.hub_transport.pause()

    def get_write_buffer_size(self) -> int:
        return self.held

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_lost


class Compressed(Transport):
    """Takes the compressed form, in which a short message follows a header of two bytes as it is."""

    def write(self, data: Any) -> None:
        super().write(WebSocketBatch((WebSocketMessage("text", bytes(data)[2:]),)))


class Socket:
    """As much of a WebSocket as the transport needs: it closes, or never finishes to."""

    def __init__(self) -> None:
        self.closed: tuple[int, str] | None = None
        self.is_stuck = False

    async def close(self, code: int, reason: str) -> None:
        if self.is_stuck:
            await asyncio.Event().wait()
        self.closed = (code, reason)


class Rig:
    def __init__(self, limit: int, policy: SlowConsumer, *, compress: bool = False) -> None:
        self.transport = Compressed() if compress else Transport()
        self.socket = Socket()
        self.owner = SlowOwner()
        websocket: WebSocket = self.socket  # type: ignore[assignment]
        self.direct = SocketTransport(self.transport, websocket, compress=compress)
        self.writer = Writer("ann", self.direct, Outbox(limit, policy), self.owner)
        self.owner.writer = self.writer
        self.transport.hub_transport = self.direct

    def fill(self) -> None:
        """Send more directly than the outbox has room for."""
        for _ in range(8):
            self.writer.write(batch("x", channel=None))


@pytest.fixture(params=["plain", "compressed"])
async def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(2000, "disconnect", compress=request.param == "compressed")


async def test_while_it_flows_the_compressed_form_is_written_at_once() -> None:
    rig = Rig(2000, "disconnect", compress=True)
    for _ in range(2):
        rig.writer.write(batch("1"))
        rig.direct.pause()
        rig.direct.resume()
    assert rig.transport.taken == ["1", "1"]


async def test_batches_written_while_it_is_paused_wait_and_go_first(rig: Rig) -> None:
    rig.writer.write(batch("1"))
    rig.direct.pause()
    rig.writer.write(batch("2"))
    rig.writer.write(batch("3", channel=None))
    assert rig.transport.taken == ["1"]
    assert rig.writer.backlog == batch("2").cost * 2
    rig.direct.resume()
    rig.writer.write(batch("4"))
    assert rig.transport.taken == ["1", "2", "3", "4"]
    assert rig.writer.backlog == 0


@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
async def test_a_client_that_is_always_behind_is_ready_for_missed_publications(policy: SlowConsumer) -> None:
    rig = Rig(2000, policy)
    rig.direct.pause()
    for number in range(20):
        rig.writer.write(batch(str(number)))
    assert await asyncio.wait_for(rig.writer.ready(), 5) == 1000
    # They are never dropped, and do not cost the client its connection.
    rig.writer.write(WebSocketBatch([WebSocketMessage("text", b"missed")] * 4))
    for number in range(20):
        rig.writer.write(batch(str(number)))
    waits = asyncio.create_task(rig.writer.ready())
    await asyncio.sleep(0)
    assert not waits.done()
    rig.direct.resume()
    assert await asyncio.wait_for(waits, 5) == 1000
    assert rig.transport.taken.count("missed") == 4
    assert rig.owner.slow_disconnects == 0


async def test_a_client_that_is_gone_takes_no_missed_publications(rig: Rig) -> None:
    rig.direct.pause()
    rig.writer.write(batch("1"))
    waits = asyncio.create_task(rig.writer.ready())
    await asyncio.sleep(0)
    rig.direct.lost()
    assert await asyncio.wait_for(waits, 5) == 0


async def test_a_transport_that_pauses_again_gets_the_rest_later(rig: Rig) -> None:
    rig.direct.pause()
    for number in range(3):
        rig.writer.write(batch(str(number)))
    rig.transport.is_slow = True
    for taken in (["0"], ["0", "1"], ["0", "1", "2"]):
        rig.direct.resume()
        assert rig.transport.taken == taken
        rig.writer.write(batch("later"))
    rig.transport.is_slow = False
    rig.direct.resume()
    assert rig.transport.taken == ["0", "1", "2", "later", "later", "later"]


async def test_a_client_beyond_the_bound_is_disconnected_with_a_close_frame_once_it_reads(rig: Rig) -> None:
    rig.direct.pause()
    for number in range(8):
        rig.writer.write(batch(str(number)))
    assert rig.owner.slow_disconnects == 1
    assert rig.writer.backlog == 0
    await rig.writer.ended(5)
    assert rig.socket.closed == (3008, "slow: more than 2000 bytes waiting")
    assert rig.transport.taken == []


async def test_a_policy_that_drops_keeps_the_client() -> None:
    rig = Rig(2000, "drop_oldest")
    rig.direct.pause()
    for number in range(20):
        rig.writer.write(batch(str(number)))
    assert rig.owner.slow_disconnects == 0
    rig.direct.resume()
    assert rig.transport.taken == [str(number) for number in range(20 - len(rig.transport.taken), 20)]
    assert rig.writer.dropped == 20 - len(rig.transport.taken) > 0


async def test_batches_that_wait_go_out_before_the_close_frame(rig: Rig) -> None:
    rig.direct.pause()
    rig.writer.write(batch("1"))
    rig.writer.end(1000, "bye")
    rig.writer.write(batch("too late"))
    ended = asyncio.create_task(rig.writer.ended(5))
    await asyncio.sleep(0)
    assert rig.socket.closed is None
    rig.direct.resume()
    await ended
    assert rig.transport.taken == ["1"]
    assert rig.socket.closed == (1000, "bye")
    assert rig.writer.is_gone


async def test_a_connection_that_the_transport_has_lost_is_gone_at_once() -> None:
    """A handler that never waits keeps the event loop from notifying the protocol."""
    rig = Rig(1000, "disconnect")
    rig.writer.send(batch("0"))
    assert not rig.writer.is_gone
    rig.transport.is_lost = True
    rig.writer.send(batch("1"))
    assert rig.writer.is_gone


async def test_without_a_code_it_only_sends_the_batches_that_wait(rig: Rig) -> None:
    rig.direct.pause()
    rig.writer.write(batch("1"))
    rig.writer.end(None)
    ended = asyncio.create_task(rig.writer.ended(5))
    await asyncio.sleep(0)
    rig.direct.resume()
    await ended
    assert rig.transport.taken == ["1"]
    assert rig.socket.closed is None


@pytest.mark.parametrize("pending", ["the backlog", "the close frame"])
async def test_a_client_that_takes_nothing_in_time_is_aborted(rig: Rig, pending: str) -> None:
    rig.direct.pause()
    if pending == "the backlog":
        rig.writer.write(batch("1"))
    rig.socket.is_stuck = True
    rig.writer.end(1000)
    await rig.writer.ended(0.01)
    assert rig.transport.is_aborted
    assert rig.writer.is_gone
    assert len(asyncio.all_tasks()) == 1


async def test_a_flush_writes_the_batches_that_wait_although_the_transport_is_paused(rig: Rig) -> None:
    rig.direct.pause()
    for number in range(3):
        rig.writer.write(batch(str(number)))
    rig.direct.flush()
    assert rig.transport.taken == ["0", "1", "2"]
    assert rig.writer.backlog == 0


async def test_nothing_is_written_and_no_task_waits_after_the_connection_is_lost(rig: Rig) -> None:
    rig.direct.pause()
    rig.fill()
    waiting = asyncio.create_task(rig.writer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    rig.direct.lost()
    await asyncio.wait_for(waiting, DEADLINE)
    rig.direct.resume()
    rig.writer.write(batch("too late"))
    assert rig.transport.taken == []
    assert rig.writer.backlog == 0
    await rig.writer.ended(5)
    assert rig.socket.closed is None


async def test_senders_that_wait_for_room_continue_when_the_transport_takes(rig: Rig) -> None:
    rig.direct.pause()
    rig.fill()
    waiting = asyncio.gather(rig.writer.room(), rig.writer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    rig.direct.resume()
    await asyncio.wait_for(waiting, DEADLINE)


async def test_senders_that_wait_for_room_continue_when_the_connection_ends(rig: Rig) -> None:
    rig.direct.pause()
    rig.fill()
    waiting = asyncio.create_task(rig.writer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    rig.writer.end(1000)
    await asyncio.wait_for(waiting, DEADLINE)
    await rig.writer.ended(0.01)


async def test_it_is_stalled_while_the_transport_takes_nothing(rig: Rig) -> None:
    now = asyncio.get_running_loop().time()
    assert rig.writer.stalled(now + 100) == 0
    rig.transport.held = 1000
    rig.direct.pause()
    assert rig.writer.stalled(now + 10) == pytest.approx(10, abs=1)
    rig.transport.held = 900
    assert rig.writer.stalled(now + 20) == 0
    assert rig.writer.stalled(now + 25) == pytest.approx(5, abs=1)
    rig.direct.resume()
    assert rig.writer.stalled(now + 100) == 0


# On real sockets. The protocol passes pause, resume and loss on, as HubProtocol does.


class Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self.direct: SocketTransport | None = None
        self.lost = asyncio.Event()
        self.pauses = 0

    def pause_writing(self) -> None:
        self.pauses += 1
        if self.direct is not None:
            self.direct.pause()

    def resume_writing(self) -> None:
        if self.direct is not None:
            self.direct.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.direct is not None:
            self.direct.lost()
        self.lost.set()


class Line:
    """A writer on one end of a socket, and the other end."""

    def __init__(self, transport: asyncio.Transport, protocol: Protocol, far: socket.socket) -> None:
        self.transport = transport
        self.protocol = protocol
        self.far = far
        websocket: WebSocket = Socket()  # type: ignore[assignment]
        self.direct = protocol.direct = SocketTransport(transport, websocket)
        self.writer = Writer("ann", self.direct, Outbox(10_000_000, "disconnect"), SlowOwner())

    async def read(self, size: int) -> bytes:
        loop, received = asyncio.get_running_loop(), b""
        while len(received) < size:
            received += await asyncio.wait_for(loop.sock_recv(self.far, 65_536), DEADLINE)
        return received


@asynccontextmanager
async def connected() -> AsyncIterator[Line]:
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    far.setblocking(False)
    transport, protocol = await asyncio.get_running_loop().create_connection(Protocol, sock=near)
    try:
        yield Line(transport, protocol, far)
    finally:
        transport.abort()
        await protocol.lost.wait()
        far.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    loop_factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        yield runner


def test_while_it_flows_write_is_the_system_call(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with connected() as line:
            write = line.writer.write
            assert isinstance(write, BuiltinMethodType)
            assert isinstance(write.__self__, socket.socket)
            line.direct.pause()
            assert line.writer.write != write
            line.direct.resume()
            assert line.writer.write == write

    runner.run(main())


def test_bytes_that_the_socket_does_not_take_follow_in_order(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with connected() as line:
            sent = b""
            for number in range(300):
                each = batch(f"{number:04}" + "x" * (number * 37 % 3000))
                line.writer.send(each)
                sent += each
                if number % 10 == 0:
                    # uvicorn's own writes, a ping for instance, come in between.
                    line.transport.write(b"\x89\x00")
                    sent += b"\x89\x00" if line.writer.backlog == 0 else b""
            assert line.protocol.pauses > 0
            assert line.transport.get_write_buffer_size() < 4000
            received = await line.read(len(sent))
            assert received.replace(b"\x89\x00", b"") == sent.replace(b"\x89\x00", b"")
            assert line.writer.backlog == 0

    runner.run(main())


@pytest.mark.parametrize("reads_on", [True, False])
def test_a_peer_that_is_gone_ends_the_connection(runner: asyncio.Runner, reads_on: bool) -> None:
    async def main() -> None:
        async with connected() as line:
            if not reads_on:
                line.transport.pause_reading()
            line.far.close()
            for _ in range(3):
                line.writer.send(batch("too late"))
            await asyncio.wait_for(line.protocol.lost.wait(), DEADLINE)
            assert line.writer.is_gone
            line.writer.send(batch("too late"))

    runner.run(main())


def test_nothing_is_written_to_a_file_descriptor_that_has_a_new_owner(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with connected() as line:
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            fd = line.transport.get_extra_info("socket").fileno()
            line.transport.abort()
            await line.protocol.lost.wait()
            # The transport closes the descriptor after it has notified the protocol.
            for _ in range(3):
                await asyncio.sleep(0)
            try:
                os.dup2(writer, fd)
                line.writer.send(batch("for another owner"))
                with pytest.raises(BlockingIOError):
                    os.read(reader, 1)
            finally:
                for each in (reader, writer, fd):
                    os.close(each)

    runner.run(main())
