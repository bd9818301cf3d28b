"""Fixtures of the tests of the memory engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hubbub.core.publication import Publication
from hubbub.engines.memory import MemoryEngine
from hubbub.engines.memory import engine as module
from hubbub.testing.engine_contract import Collector
from tests.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(5_000.0)


@pytest.fixture
async def engine(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryEngine]:
    monkeypatch.setattr(module, "SWEEP_EVERY", 0.001)
    engine = MemoryEngine("memory://", clock=clock)

    class Sink(Collector):
        def on_publication(self, publication: Publication) -> None:
            """Keep nothing."""

    await engine.start(Sink())
    yield engine
    await engine.stop()
