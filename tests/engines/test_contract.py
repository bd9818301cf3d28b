"""What every engine promises, tested on real servers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hubbub.engines import Engine, engine_for
from hubbub.testing.engine_contract import EngineContract
from tests.engines.postgres.nodes import with_parameters


class TestMemory(EngineContract):
    across_processes = False

    def make(self) -> Engine:
        return engine_for("memory://", self.namespace)


class TestSQLite(EngineContract):
    def setup_method(self) -> None:
        super().setup_method()
        self.directory = TemporaryDirectory()

    def teardown_method(self) -> None:
        self.directory.cleanup()

    def make(self) -> Engine:
        return engine_for(f"sqlite:///{Path(self.directory.name) / 'hub.db'}", self.namespace)


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
