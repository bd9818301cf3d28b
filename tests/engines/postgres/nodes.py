"""Nodes on a PostgreSQL server, and helpers of their tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import asyncpg
import pytest

from hubbub.core.publication import Position
from hubbub.engines.base import PresenceChange
from hubbub.engines.postgres import PostgresEngine
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.clients import DEADLINE

#: A connection to the database, of any driver, within a transaction.
Using: TypeAlias = Any

needs_own_server = pytest.mark.skipif(
    "HUBBUB_TEST_POSTGRES_URL" in os.environ, reason="stops and starts the server"
)


def with_parameters(url: str, parameters: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{parameters}"


@asynccontextmanager
async def started(url: str, namespace: str) -> AsyncIterator[tuple[PostgresEngine, Collector]]:
    engine, collector = PostgresEngine(url, namespace), Collector()
    await engine.start(collector)
    try:
        yield engine, collector
    finally:
        await engine.stop()


async def until(connection: Any, condition: str) -> None:
    """Wait until ``condition``, in SQL, is true."""
    async with asyncio.timeout(DEADLINE):
        while not await connection.fetchval(f"SELECT {condition}"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def cut_off_listener(connection: Any, namespace: str, earlier: Collection[int] = ()) -> Sequence[int]:
    """End the connection of the namespace's node that listens and reads, as an outage of the network does.

    :param earlier: the processes of the server that earlier calls have ended; they may still be listed.
    :return: the processes of the server that this call has ended.
    """
    # Such a connection is known by its statements. The first is a poll, at most a second after the start.
    listening = f"""
        SELECT array_agg(pid) FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND pid <> ALL ($1::integer[])
            AND query LIKE '%"{namespace}".%' AND query LIKE '%AS c (channel, seen%'
    """
    async with asyncio.timeout(DEADLINE):
        while not (found := await connection.fetchval(listening, list(earlier))):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await connection.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::integer[]) AS pid", found)
    processes: Sequence[int] = found
    return processes


async def publish_when_possible(engine: PostgresEngine, channel: str, text: str) -> Position:
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(EngineUnavailable):
                return await engine.publish(publication(channel, text), HISTORY)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def asyncpg_connection(url: str) -> AsyncIterator[Using]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


class RollBack(Exception):
    """Ends a transaction without a commit."""


def enters(channel: str, connection: str) -> PresenceChange:
    return PresenceChange(channel, connection, connection.encode())


def leaves(channel: str, connection: str) -> PresenceChange:
    return PresenceChange(channel, connection, None)
