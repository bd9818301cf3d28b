"""The proxy of the fault suite breaks connections in the ways that it documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.clients import DEADLINE, eventually
from tests.proxy import Proxy, Way


class Echo:
    """A server that sends bytes back, and records them."""

    def __init__(self) -> None:
        self.port = 0
        self.received = b""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                self.received += data
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    async with await asyncio.start_server(echo.handle, "127.0.0.1", 0) as server:
        echo.port = server.sockets[0].getsockname()[1]
        yield echo


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with Proxy(echo.port) as proxy:
        yield proxy


class Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def receive(self) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await self._reader.read(100)

    async def echoes(self, data: bytes) -> None:
        self.send(data)
        assert await self.receive() == data

    def close(self) -> None:
        self._writer.transport.abort()


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    await client.echoes(b"hello")
    yield client
    client.close()


async def test_a_cut_connection_is_reset(proxy: Proxy, client: Client) -> None:
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await client.receive()
    await eventually(lambda: proxy.links == [])


async def test_stalled_bytes_arrive_after_healing(proxy: Proxy, echo: Echo, client: Client) -> None:
    proxy.stall()
    client.send(b"later")
    other = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    other.send(b"too")
    receiving = asyncio.gather(client.receive(), other.receive())
    # The proxy has its connection to the server by then.
    await eventually(lambda: len(proxy.links) == 2)
    assert echo.received == b"hello"
    proxy.heal()
    assert [*await receiving] == [b"later", b"too"]
    other.close()


async def test_a_half_open_connection_loses_bytes_and_stays_dead(
    proxy: Proxy, echo: Echo, client: Client
) -> None:
    proxy.half_open(Way.TO_SERVER)
    client.send(b"lost")
    other = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    other.send(b"lost too")
    await eventually(lambda: len(proxy.links) == 2 and all(link.is_dead for link in proxy.links))
    proxy.heal()
    client.send(b"also lost")
    third = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    await third.echoes(b"new")
    assert echo.received == b"hellonew"
    other.close()
    third.close()


async def test_one_direction_may_be_half_open(proxy: Proxy, echo: Echo, client: Client) -> None:
    proxy.half_open(Way.TO_WORKER)
    client.send(b" there")
    await eventually(lambda: echo.received == b"hello there")
    await eventually(lambda: proxy.links[0].is_dead)
    receiving = asyncio.create_task(client.receive())
    proxy.heal()
    client.send(b"!")
    await eventually(lambda: echo.received == b"hello there!")
    # The connection is not closed either.
    assert not receiving.done()
    receiving.cancel()


async def test_new_connections_are_refused_and_open_ones_stay(proxy: Proxy, client: Client) -> None:
    proxy.refuse()
    await client.echoes(b"still")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    port = proxy.port
    proxy.accept()
    assert proxy.port == port
    again = Client(*await asyncio.open_connection("127.0.0.1", port))
    await again.echoes(b"again")
    again.close()


async def test_a_connection_to_a_server_that_does_not_run_is_reset() -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
    async with Proxy(port) as proxy:
        client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
        with pytest.raises(ConnectionResetError):
            await client.receive()
        client.close()
