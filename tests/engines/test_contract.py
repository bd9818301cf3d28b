"""The contract of engines, tested on all of ours and on real servers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hubbub.engines import Engine, engine_for
from hubbub.engines.memory import MemoryEngine
from hubbub.engines.sqlite import SQLiteEngine
from hubbub.testing import EngineContract, FakeEngine, FakeServer
from tests.clock import FakeClock
from tests.engines.postgres.nodes import with_parameters


class ContractOnFakeClock(EngineContract):
    """The contract of an engine that takes a clock."""

    def setup_method(self) -> None:
        super().setup_method()
        self.clock = FakeClock(1_000_000.0)

    async def elapse(self, seconds: float) -> None:
        self.clock.advance(seconds)


class TestMemory(ContractOnFakeClock):
    across_processes = False

    def make(self) -> Engine:
        return MemoryEngine("memory://", self.namespace, self.clock)


class TestFakeEngine(ContractOnFakeClock):
    def setup_method(self) -> None:
        super().setup_method()
        self.server = FakeServer(self.clock)

    def make(self) -> Engine:
        return FakeEngine(self.server)


class TestSQLite(ContractOnFakeClock):
    def setup_method(self) -> None:
        super().setup_method()
        self.directory = TemporaryDirectory()

    def teardown_method(self) -> None:
        self.directory.cleanup()

    def make(self) -> Engine:
        url = f"sqlite:///{Path(self.directory.name) / 'hub.db'}"
        return SQLiteEngine(url, self.namespace, self.clock)


class TestRedis(EngineContract):
    @pytest.fixture(autouse=True)
    def server(self, redis_url: str) -> None:
        self.url = redis_url

    def make(self) -> Engine:
        return engine_for(self.url, self.namespace)


class TestRedisCluster(EngineContract):
    @pytest.fixture(autouse=True)
    def servers(self, redis_cluster_url: str) -> None:
        self.url = redis_cluster_url

    def make(self) -> Engine:
        return engine_for(self.url, self.namespace)


class TestPostgres(EngineContract):
    @pytest.fixture(autouse=True)
    def server(self, postgres_url: str) -> None:
        self.url = postgres_url

    def make(self) -> Engine:
        return engine_for(self.url, self.namespace)


class TestPostgresWithoutNotifications(TestPostgres):
    def make(self) -> Engine:
        return engine_for(with_parameters(self.url, "notify=off"), self.namespace)
