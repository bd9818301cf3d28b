"""The servers and files behind the engine of a trial, made for the trial so that faults can break them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import asyncpg
from redis import Redis

from tests.engines.postgres.server import PostgresServer, postgres_server
from tests.engines.redis.server import RedisServer, redis_server
from tests.faults.stage import Stage, stage
from tests.proxy import Proxy


class Broker(ABC):
    """The server or the file behind the engine of a trial."""

    @property
    @abstractmethod
    def url(self) -> str: ...


class Proxied(Broker):
    """A server behind a proxy; the workers connect to the proxy."""

    proxy: Proxy


B = TypeVar("B", bound=Broker)


class SQLiteFile(Broker):
    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    @property
    def files(self) -> list[Path]:
        return [path for end in ("", "-wal", "-shm") if (path := Path(f"{self.path}{end}")).exists()]


class RedisBroker(Proxied):
    """Redis behind a proxy.

    :param client: is connected to the server itself.
    """

    def __init__(self, server: RedisServer, proxy: Proxy, client: Redis) -> None:
        self.server = server
        self.proxy = proxy
        self.client = client

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.proxy.port}"


class PostgresBroker(Proxied):
    def __init__(self, server: PostgresServer, proxy: Proxy) -> None:
        self.server = server
        self.proxy = proxy

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.proxy.port}/postgres"

    async def execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.server.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@asynccontextmanager
async def on_sqlite(folder: Path, workers: int = 2) -> AsyncIterator[tuple[Stage, SQLiteFile]]:
    """Build a stage on SQLite.

    :param folder: for the file and the output of the workers.
    """
    broker = SQLiteFile(folder / "hub.db")
    async with stage(broker.url, folder / "server.log", workers) as it:
        yield it, broker


@asynccontextmanager
async def on_redis(folder: Path, workers: int = 2) -> AsyncIterator[tuple[Stage, RedisBroker]]:
    # With this option the engine knows that a restart loses nothing, also if no worker survives it.
    with redis_server("appendfsync", "always") as server, server.client() as client:
        async with Proxy(server.port) as proxy:
            broker = RedisBroker(server, proxy, client)
            async with stage(broker.url, folder / "server.log", workers) as it:
                yield it, broker


@asynccontextmanager
async def on_postgres(folder: Path, workers: int = 2) -> AsyncIterator[tuple[Stage, PostgresBroker]]:
    with postgres_server() as server:
        async with Proxy(server.port) as proxy:
            broker = PostgresBroker(server, proxy)
            async with stage(broker.url, folder / "server.log", workers) as it:
                yield it, broker
