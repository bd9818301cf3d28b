"""What every engine promises, tested on real servers."""

from __future__ import annotations

import pytest

from hubbub.engines import Engine, engine_for
from hubbub.engines.contract import EngineContract


class TestMemory(EngineContract):
    across_processes = False

    def make(self) -> Engine:
        return engine_for("memory://", self.namespace)


class TestPostgres(EngineContract):
    @pytest.fixture(autouse=True)
    def server(self, postgres_url: str) -> None:
        self.url = postgres_url

    def make(self) -> Engine:
        return engine_for(self.url, self.namespace)
