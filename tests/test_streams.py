"""Channels with history in an app: publishing, reading, resuming and removing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient

from hubbub import History, Hub, Position, Unrecoverable
from hubbub.core.publication import START

HISTORY = History(size=50, ttl=60)

# The hub


async def test_a_hub_keeps_what_a_channel_is_declared_to_keep() -> None:
    hub = Hub()
    hub.channel("room:{id}", history=History(size=3))
    async with hub:
        positions = [await hub.publish("room:1", str(number)) for number in range(5)]
        assert [position.offset for position in positions] == [1, 2, 3, 4, 5]
        assert await hub.publish("plain", "x") == START
        assert [each.data for each in await hub.history("room:1")] == [b"2", b"3", b"4"]
        assert [each.data for each in await hub.history("room:1", since=positions[3])] == [b"4"]
        assert await hub.history("room:1", since=positions[4]) == []
        assert [each.data for each in await hub.history("room:1", limit=1, reverse=True)] == [b"4"]
        for since in (positions[0], START, Position(2, "another")):
            with pytest.raises(Unrecoverable):
                await hub.history("room:1", since=since)
        await hub.remove_history("room:1")
        assert await hub.history("room:1") == []
        with pytest.raises(Unrecoverable):
            await hub.history("room:1", since=positions[4])


async def test_an_idempotency_key_publishes_once() -> None:
    hub = Hub()
    hub.channel("chat", history=HISTORY)
    async with hub:
        first = await hub.publish("chat", "paid", idempotency_key="order-1")
        assert await hub.publish("chat", "paid", idempotency_key="order-1") == first
        assert len(await hub.history("chat")) == 1


# On a socket


@contextmanager
def client_of(hub: Hub) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(hub.router)

    @app.websocket("/ws")
    async def feed(websocket: WebSocket, offset: int = 0, epoch: str | None = None) -> None:
        async with hub.connection(websocket) as client:
            since = Position(offset, epoch) if epoch is not None else None
            try:
                position = await client.subscribe("chat", since=since)
            except Unrecoverable as exc:
                await client.send_json({"lost": exc.offset})
                return
            await client.send_json(position)
            async for text in client.iter_text():
                await hub.publish("chat", text)

    @app.delete("/history")
    async def forget() -> None:
        await hub.remove_history("chat")

    with TestClient(app) as client:
        yield client


def test_a_client_with_a_position_resumes_without_a_gap() -> None:
    hub = Hub()
    hub.channel("chat", history=HISTORY)
    with client_of(hub) as client:
        with client.websocket_connect("/ws") as first:
            offset, epoch = first.receive_json()
            first.send_text("1")
            assert first.receive_text() == "1"
            offset += 1
        with client.websocket_connect("/ws") as other:
            other.receive_json()
            for text in ("2", "3"):
                other.send_text(text)
                other.receive_text()
            with client.websocket_connect(f"/ws?offset={offset}&epoch={epoch}") as again:
                assert [again.receive_text(), again.receive_text()] == ["2", "3"]
                assert again.receive_json() == [3, epoch]
                other.send_text("4")
                assert again.receive_text() == "4"
            with client.websocket_connect(f"/ws?offset=1&epoch=other{epoch}") as lost:
                assert lost.receive_json() == {"lost": 4}


def test_a_client_whose_subscription_breaks_is_closed_with_3010() -> None:
    hub = Hub()
    hub.channel("chat", history=HISTORY)
    with client_of(hub) as client, client.websocket_connect("/ws") as socket:
        socket.receive_json()
        socket.send_text("1")
        assert socket.receive_text() == "1"
        assert client.delete("/history").status_code == 200
        socket.send_text("2")
        closing = socket.receive()
        assert (closing["type"], closing["code"]) == ("websocket.close", 3010)
        assert closing["reason"].startswith("insufficient state: 'chat' continues from")
