"""The chat of the README on real servers, while a third of its clients vanish."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from websockets.asyncio.client import ClientConnection

from tests.clients import DEADLINE, connect, receive, reset
from tests.uvicorn_process import Server, serve


class Reader:
    """A client that keeps the messages it receives."""

    def __init__(self, client: ClientConnection) -> None:
        self.client = client
        self.received: list[str] = []

    async def read(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while len(self.received) < count:
                self.received.append(str(await self.client.recv()))


async def subscribed(server: Server, talker: ClientConnection, count: int) -> list[ClientConnection]:
    """Connect ``count`` more clients, all of them subscribed when this returns."""
    clients = await asyncio.gather(*(connect(f"{server.ws}/ws/{number}") for number in range(1, count + 1)))
    for number, client in enumerate(clients, 1):
        # A client that receives its own message is subscribed.
        await client.send("here")
        own = f"Client #{number} says: here"
        while await receive(client) != own:
            pass
    await talker.send("all here")
    for client in [*clients, talker]:
        while await receive(client) != "Client #0 says: all here":
            pass
    return list(clients)


async def chat_while_some_vanish(server: Server, total: int, vanishing: int, messages: int) -> None:
    async with connect(f"{server.ws}/ws/0") as talker:
        clients = await subscribed(server, talker, total)
        vanished = clients[:: total // vanishing][:vanishing]
        readers = [Reader(client) for client in clients if client not in vanished]
        # Each client that stays receives every message and every departure.
        reading = asyncio.gather(*(reader.read(messages + vanishing) for reader in readers))
        leave_at = {round((n + 1) * messages / (vanishing + 2)): client for n, client in enumerate(vanished)}
        for number in range(messages):
            if number in leave_at:
                reset(leave_at[number])
            await talker.send(f"message {number}")
            assert await receive(talker)  # its own echo, or a departure: keeps it from running ahead
        await reading
        said = [f"Client #0 says: message {number}" for number in range(messages)]
        left = Counter(f"Client #{clients.index(client) + 1} left the chat" for client in vanished)
        for reader in readers:
            assert [text for text in reader.received if "says" in text] == said
            assert Counter(text for text in reader.received if "left" in text) == left
        await asyncio.gather(*(reader.client.close() for reader in readers))


async def test_clients_that_stay_get_all_messages_in_order_and_each_departure_once(
    server_name: str, log: Path
) -> None:
    async with serve("chat:app", log, command=server_name) as server:
        await chat_while_some_vanish(server, total=30, vanishing=10, messages=200)
    assert "Traceback" not in server.log


async def test_a_third_of_a_hundred_clients_vanish_in_the_middle_of_a_broadcast(log: Path) -> None:
    async with serve("chat:app", log) as server:
        await chat_while_some_vanish(server, total=100, vanishing=33, messages=300)
    assert "Traceback" not in server.log


async def test_a_server_that_is_restarted_serves_again(log: Path) -> None:
    async with serve("chat:app", log) as server, connect(f"{server.ws}/ws/1") as client:
        await client.send("before")
        assert await receive(client) == "You wrote: before"
    async with serve("chat:app", log, port=server.port) as again, connect(f"{again.ws}/ws/1") as client:
        await client.send("after")
        assert await receive(client) == "You wrote: after"
