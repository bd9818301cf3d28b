"""What every engine promises, tested on real servers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hubbub.engines import Engine, engine_for
from hubbub.engines.contract import EngineContract


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
