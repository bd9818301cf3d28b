"""Slow clients on real servers: other clients are not affected, and memory for slow ones is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.clients import DEADLINE, connect, connect_deaf, eventually, receive, reset
from tests.uvicorn_process import ROOT, Command, Server, serve

MESSAGE_BYTES = 4096


async def stats(server: Server) -> dict[str, Any]:
    return await server.get_json("/stats")


async def connections(server: Server, count: int) -> None:
    async def there_are() -> bool:
        return bool((await stats(server))["connections"] == count)

    await eventually(there_are)


def message(number: int) -> str:
    return f"{number:08}".ljust(MESSAGE_BYTES, ".")


async def talk(
    talker: ClientConnection, count: int, outstanding: int = 8, say: Callable[[int], str] = message
) -> None:
    """Publish ``count`` messages and receive them all, at most ``outstanding`` of them at a time."""
    for number in range(count + outstanding):
        if number < count:
            await talker.send(say(number))
        if number >= outstanding:
            assert await receive(talker) == say(number - outstanding)


#: For :func:`slow_server`: short timeouts for clients that take no more.
SOON_CLOSED = {"HUBBUB_TEST_CLOSE_TIMEOUT": "1"}
SOON_GIVEN_UP = {**SOON_CLOSED, "HUBBUB_TEST_SEND_TIMEOUT": "2"}


def slow_server(
    command: Command | str, log: Path, env: Mapping[str, str] | None = None
) -> AbstractAsyncContextManager[Server]:
    return serve("tests.apps.slow:app", log, command=command, cwd=ROOT, probe="/stats", env=env)


@pytest.fixture
async def server(server_name: str, log: Path) -> AsyncIterator[Server]:
    async with slow_server(server_name, log) as server:
        yield server


async def test_a_client_that_never_reads_is_disconnected_and_other_clients_are_not_affected(
    server_name: str, log: Path
) -> None:
    async with slow_server(server_name, log, SOON_CLOSED) as server:
        async with connect(f"{server.ws}/news/disconnect") as talker:
            assert await receive(talker) == "ready"
            readers = await asyncio.gather(*(connect(f"{server.ws}/news/disconnect") for _ in range(20)))
            for reader in readers:
                assert await receive(reader) == "ready"
            before = await stats(server)
            deaf = await connect_deaf(f"{server.ws}/news/disconnect")
            await talk(talker, 3000)
            for reader in readers:
                for number in range(3000):
                    assert await receive(reader) == message(number)
            await connections(server, 21)
            after = await stats(server)
            assert after["slow_disconnects"] == 1
            assert after["backlog"] == 0
            # 12 MB were published; the messages that waited for the deaf client are freed.
            assert after["resident_kib"] - before["resident_kib"] < 20_000
            deaf.transport.abort()
            await asyncio.gather(*(reader.close() for reader in readers))
        await connections(server, 0)


async def test_a_disconnected_client_gets_the_reason_when_it_reads_again(server: Server) -> None:
    async with connect(f"{server.ws}/news/disconnect") as talker:
        assert await receive(talker) == "ready"
        deaf = await connect_deaf(f"{server.ws}/news/disconnect")

        async def it_is_disconnected() -> bool:
            return bool((await stats(server))["slow_disconnects"])

        number = 0
        while not await it_is_disconnected():
            for _ in range(50):
                await talker.send(message(number))
                assert await receive(talker) == message(number)
                number += 1
        deaf.transport.resume_reading()
        for expected in range(number):
            try:
                async with asyncio.timeout(DEADLINE):
                    assert await deaf.recv() == message(expected)
            except ConnectionClosed:
                break
        assert deaf.close_code == 3008
        assert deaf.close_reason == "slow: more than 300000 bytes waiting"


@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
async def test_a_slow_client_whose_messages_are_dropped_gets_the_newest(server: Server, policy: str) -> None:
    async with connect(f"{server.ws}/news/disconnect") as talker:
        assert await receive(talker) == "ready"
        slow = await connect_deaf(f"{server.ws}/news/{policy}")
        await talk(talker, 3000)
        dropped = (await stats(server))["dropped"]
        assert dropped > 0
        slow.transport.resume_reading()
        received = [str(await receive(slow))]
        while received[-1] != message(2999):
            received.append(str(await receive(slow)))
        assert received == sorted(set(received))
        assert len(received) == 3000 - dropped
        # It is still subscribed.
        await talk(talker, 10)
        while await receive(slow) != message(9):
            pass
        await slow.close()


async def test_a_handler_that_streams_waits_for_its_client_and_ends_with_it(
    server_name: str, log: Path
) -> None:
    async with slow_server(server_name, log, SOON_GIVEN_UP) as server:
        deaf = await connect_deaf(f"{server.ws}/stream")

        async def it_is_disconnected() -> bool:
            return bool((await stats(server))["slow_disconnects"] == 1)

        await eventually(it_is_disconnected)
        await connections(server, 0)
        now = await stats(server)
        # Kernel and server hold a few megabytes by themselves; a handler that did not wait would have run on.
        assert now["streamed"] < 3000
        deaf.transport.abort()
        # granian hangs, now and then, if it is stopped while it finds out that a client is gone.
        await stats(server)


@pytest.mark.parametrize("name", ["hubbub run", "uvicorn --ws", "uvicorn"])
async def test_a_handler_that_only_streams_ends_when_its_client_vanishes(name: str, log: Path) -> None:
    # hypercorn and granian do not report to a sender that its client has left; see Connection.send.
    async with slow_server(name, log) as server:
        client = await connect(f"{server.ws}/stream")
        for _ in range(10):
            await receive(client)
        reset(client)
        await connections(server, 0)
        assert "Traceback" not in server.log
