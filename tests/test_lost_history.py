"""Servers that lose the history of a declared channel, while publishers publish that do not know of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest

from hubbub import EngineUnavailable, History, Position, Publication, Publisher, Unrecoverable
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.publication import START
from hubbub.engines import engine_for
from hubbub.node.node import Node
from tests.clients import DEADLINE
from tests.engines.redis.server import redis_server
from tests.subscriber import Subscriber

HISTORY = History(size=50, ttl=60)


@asynccontextmanager
async def running(url: str, namespace: str) -> AsyncIterator[Node]:
    node = Node(
        engine_for(url, namespace), lambda name: ChannelDeclaration(name, HISTORY) if name == "chat" else None
    )
    await node.start()
    try:
        yield node
    finally:
        await node.stop(1012, "", 1)


async def check(url: str, namespace: str, lose: Callable[[], Awaitable[object]]) -> None:
    subscriber = Subscriber()
    async with running(url, namespace) as node:
        await node.join("chat", subscriber)
        before = await node.publish(Publication("chat", b"1", "text", id="1"))
        await lose()
        with Publisher(url, namespace=namespace) as publisher:
            position = START
            async with asyncio.timeout(DEADLINE):
                while position == START:
                    with suppress(EngineUnavailable):
                        position = await asyncio.to_thread(publisher.publish, "chat", "1")
                while not subscriber.breaks:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                position = await asyncio.to_thread(publisher.publish, "chat", "2")
                # Publications before the break may have been lost with the history.
                while subscriber.received[-1:] != ["2"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert position.epoch == node.position("chat").epoch != before.epoch
            # A client that reconnects from before the loss cannot resume.
            with pytest.raises(Unrecoverable):
                await node.join("chat", Subscriber(), since=before)
            # A client that joins now can resume later.
            last = await asyncio.to_thread(publisher.publish, "chat", "3")
            late = Subscriber()
            await node.join("chat", late, since=Position(last.offset - 1, last.epoch))
            async with asyncio.timeout(DEADLINE):
                while late.received != ["3"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_redis_that_was_flushed() -> None:
    with redis_server() as server, server.client() as client:

        async def flush() -> None:
            # The connections stay: only the next publication shows the loss.
            client.flushall()

        await check(server.url, "hubbub", flush)


async def test_redis_that_was_restarted_without_its_data() -> None:
    with redis_server() as server:

        async def restart() -> None:
            server.kill()
            server.forget()
            server.start()

        await check(server.url, "hubbub", restart)


async def test_postgresql_whose_schema_was_dropped(postgres_url: str, namespace: str) -> None:
    async def drop() -> None:
        connection = await asyncpg.connect(postgres_url)
        try:
            await connection.execute(f'DROP SCHEMA "{namespace}" CASCADE')
        finally:
            await connection.close()

    await check(postgres_url, namespace, drop)
