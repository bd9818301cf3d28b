"""Idempotency keys: how many are remembered, and for how long."""

from __future__ import annotations

import pytest

from hubbub.engines.base import IDEMPOTENCY_WINDOW
from hubbub.engines.memory import MemoryEngine, idempotency
from hubbub.testing.engine_contract import Collector, publication
from tests.clock import FakeClock
from tests.engines.memory.helpers import SHORT, grows_by_less_than


async def test_a_long_key_takes_no_more_memory_than_a_short_one(engine: MemoryEngine) -> None:
    with grows_by_less_than(2_000_000):
        for number in range(1000):
            await engine.publish(publication("chat", "1"), None, f"{number}" * 10_000)
    first = await engine.publish(publication("kept", "1"), SHORT, "x" * 10_000 + "1")
    assert await engine.publish(publication("kept", "1"), SHORT, "x" * 10_000 + "1") == first
    assert await engine.publish(publication("kept", "1"), SHORT, "x" * 10_000 + "2") != first


async def test_keys_are_bounded_and_the_oldest_are_forgotten_first(
    engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEYS", 10)
    for number in range(15):
        assert (await engine.publish(publication("chat", "1"), SHORT, str(number))).offset == number + 1
    assert (await engine.publish(publication("chat", "1"), SHORT, "14")).offset == 15
    assert (await engine.publish(publication("chat", "1"), SHORT, "4")).offset == 16
    assert caplog.text.count("idempotency keys") == 1


async def test_a_key_publishes_again_after_the_window(engine: MemoryEngine, clock: FakeClock) -> None:
    await engine.stop()
    sink = Collector()
    await engine.start(sink)
    for _ in range(3):
        for _ in range(2):
            await engine.publish(publication("chat", "1"), None, "key")
        clock.advance(IDEMPOTENCY_WINDOW)
    assert sink.texts("chat") == ["1"] * 3
