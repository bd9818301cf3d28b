"""What every engine promises, tested on real servers."""

from __future__ import annotations

from hubbub.engines import Engine, engine_for
from hubbub.engines.contract import EngineContract


class TestMemory(EngineContract):
    across_processes = False

    def make(self) -> Engine:
        return engine_for("memory://", self.namespace)
