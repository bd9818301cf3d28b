"""What every engine promises, tested on real servers."""

from __future__ import annotations

import pytest

from hubbub.engines import Engine, engine_for
from hubbub.engines.contract import EngineContract


class TestMemory(EngineContract):
    across_processes = False

    def make(self) -> Engine:
        return engine_for("memory://", self.namespace)


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
