"""A TCP proxy between a worker and its server, which simulates network failures."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum, Flag, auto
from types import TracebackType
from typing import Self

#: Bytes read at once.
CHUNK = 65_536


class Way(Flag):
    """The directions of a connection."""

    TO_SERVER = auto()
    TO_WORKER = auto()
    BOTH = TO_SERVER | TO_WORKER


class State(Enum):
    """How the proxy treats the bytes of one direction."""

    #: They are passed on.
    OPEN = auto()
    #: They are not read: they wait in the buffers of the kernel, and then at the sender.
    STALLED = auto()
    #: They are read and discarded. To the sender they seem to arrive.
    SWALLOWED = auto()


class Link:
    """One connection from a worker, and the proxy's own to the server."""

    def __init__(
        self,
        proxy: Proxy,
        worker: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._worker, self._server = worker, server
        # The directions in which bytes were discarded: later bytes would make no sense.
        self._lost = Way(0)

    @property
    def is_dead(self) -> bool:
        """Whether bytes were discarded."""
        return bool(self._lost)

    async def run(self) -> None:
        """Pass bytes on, until one side ends the connection."""
        ways = (
            (Way.TO_SERVER, self._worker[0], self._server[1]),
            (Way.TO_WORKER, self._server[0], self._worker[1]),
        )
        tasks = [asyncio.create_task(self._pass(*way)) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._worker[1].close()
            self._server[1].close()

    def cut(self) -> None:
        """Reset both sides of the connection."""
        _reset(self._worker[1])
        _reset(self._server[1])

    async def _pass(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                await self._proxy.until_not_stalled(way)
                data = await reader.read(CHUNK)
                # The proxy may have been stalled during the read.
                await self._proxy.until_not_stalled(way)
                is_dead = way in self._lost or self._proxy.state(way) is State.SWALLOWED
                if is_dead and data:
                    self._lost |= way
                elif is_dead:
                    # The end of the stream is not passed on either.
                    await asyncio.Event().wait()
                elif data:
                    writer.write(data)
                    await writer.drain()
                else:
                    return


class Proxy:
    """A port that forwards to another one.

    ::

        async with Proxy(server_port) as proxy:
            connect_to(proxy.port)
            proxy.cut()

    :param server_port: the port to forward to, on this machine.
    """

    def __init__(self, server_port: int) -> None:
        self.port = 0
        #: The open connections.
        self.links: list[Link] = []
        self._server_port = server_port
        self._listener: socket.socket | None = None
        self._states = {Way.TO_SERVER: State.OPEN, Way.TO_WORKER: State.OPEN}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse()
        self.cut()
        # A task that has not begun would not close its socket.
        await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Failures

    def cut(self, links: Iterable[Link] | None = None) -> None:
        """Reset the given connections, or all."""
        for link in list(self.links if links is None else links):
            link.cut()

    def refuse(self) -> None:
        """Refuse new connections, as if the server did not run. Open connections stay."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Accept new connections (again)."""
        if self._listener is None:
            # Not asyncio.start_server(): if it is closed at the wrong moment, it leaks a connection.
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def stall(self, ways: Way = Way.BOTH) -> None:
        """Accept connections, but pass no bytes on until :meth:`heal`. No byte is lost."""
        self._set(ways, State.STALLED)

    def half_open(self, ways: Way = Way.TO_SERVER) -> None:
        """Discard bytes without an error for the sender, as when a machine or a router fails.

        A connection that has lost bytes in this way stays dead; :meth:`heal` is for new ones.
        """
        self._set(ways, State.SWALLOWED)

    def heal(self) -> None:
        """Pass all bytes on again."""
        self._set(Way.BOTH, State.OPEN)

    # For the links

    def state(self, way: Way) -> State:
        return self._states[way]

    async def until_not_stalled(self, way: Way) -> None:
        while self._states[way] is State.STALLED:
            await self._changed.wait()

    # Internal

    def _set(self, ways: Way, state: State) -> None:
        for way in ways:
            self._states[way] = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _accept(self, listener: socket.socket) -> None:
        # The worker may have closed the connection meanwhile.
        with suppress(BlockingIOError, ConnectionError):
            worker, _ = listener.accept()
            task = asyncio.create_task(self._serve(worker))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            worker = await asyncio.open_connection(sock=sock)
        except OSError:
            sock.close()
            return
        try:
            server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            # There is no server: reset, so that the worker notices at once.
            _reset(worker[1])
            return
        except asyncio.CancelledError:
            _reset(worker[1])
            raise
        link = Link(self, worker, server)
        self.links.append(link)
        try:
            await link.run()
        finally:
            self.links.remove(link)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    # Lingering for zero seconds makes closing send RST and drop what was not sent (SO_LINGER in socket(7)).
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
