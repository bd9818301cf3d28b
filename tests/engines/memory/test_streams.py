"""Streams in memory: for how long publications, streams and epochs are kept."""

from __future__ import annotations

import gc
import time
from typing import Any
from weakref import WeakSet

import pytest

from hubbub.core.history import MAX_TTL, History
from hubbub.core.publication import Position
from hubbub.engines.base import IDEMPOTENCY_WINDOW, STREAM_TTL
from hubbub.engines.memory import MemoryEngine
from hubbub.engines.memory import engine as module
from hubbub.testing.engine_contract import Collector, publication
from tests.clock import FakeClock
from tests.engines.memory.helpers import LONG, SHORT, forgotten, grows_by_less_than, publish_payload, until

# Expiry


async def test_expired_publications_are_dropped_without_a_call(
    engine: MemoryEngine, clock: FakeClock
) -> None:
    payloads: WeakSet[Any] = WeakSet()
    for number in range(20):
        payloads |= await publish_payload(engine, f"room:{number % 4}", SHORT)
        payloads |= await publish_payload(engine, "long", LONG)
        clock.advance(1)
    await engine.subscribe("room:0")
    gc.collect()
    assert len(payloads) > 20
    clock.advance(SHORT.ttl + 1)
    await until(lambda: len(payloads) == 20)
    assert (await engine.history("room:0")).position.offset == 5
    assert len((await engine.history("long")).publications) == 20


async def test_a_channel_with_a_long_ttl_does_not_delay_the_expiry_of_others(
    engine: MemoryEngine, clock: FakeClock
) -> None:
    for channel, history in (("long", LONG), ("short", SHORT), ("subscribed", SHORT)):
        await engine.publish(publication(channel, "1"), history)
    subscribed = await engine.subscribe("subscribed")
    clock.advance(SHORT.ttl + STREAM_TTL + 2)
    await forgotten(engine, "short")
    (long, _), (kept, _) = await engine.tops(["long", "subscribed"])
    assert long.offset == 1
    assert kept == subscribed.position
    # Once its last subscriber has left, it is remembered as long as other channels.
    await engine.unsubscribe("subscribed")
    expired = await publish_payload(engine, "expired", SHORT)
    clock.advance(STREAM_TTL - 1)
    # A round of expiry has come, and has left the stream alone.
    await until(lambda: not expired)
    assert (await engine.tops(["subscribed"]))[0].position == kept
    clock.advance(SHORT.ttl + 2)
    await forgotten(engine, "subscribed")


async def test_more_channels_than_one_round_of_expiry_are_forgotten(
    engine: MemoryEngine, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEPT", 3)
    names = [f"room:{number}" for number in range(50)]
    for name in names:
        await engine.publish(publication(name, "1"), SHORT, name)
    clock.advance(SHORT.ttl + STREAM_TTL + IDEMPOTENCY_WINDOW)
    for name in names:
        await forgotten(engine, name)
    # The stream and its key are forgotten, so offsets begin with 1 again.
    assert (await engine.publish(publication("room:0", "1"), SHORT, "room:0")).offset == 1


@pytest.mark.parametrize("by", ["publishing", "subscribing"])
async def test_a_shorter_ttl_applies_to_earlier_publications(
    engine: MemoryEngine, clock: FakeClock, by: str
) -> None:
    payloads = await publish_payload(engine, "chat", LONG)
    clock.advance(SHORT.ttl)
    if by == "publishing":
        await engine.publish(publication("chat", "2"), SHORT)
    else:
        await engine.subscribe("chat", SHORT)
    # The publication of just now is kept for the whole ttl.
    clock.advance(1)
    await until(lambda: not payloads)


async def test_a_history_with_the_longest_ttl_is_kept(engine: MemoryEngine, clock: FakeClock) -> None:
    await engine.publish(publication("chat", "1"), History(size=10, ttl=MAX_TTL))
    for _ in range(5):
        expired = await publish_payload(engine, "expired", SHORT)
        clock.advance(STREAM_TTL)
        await until(lambda p=expired: not p)  # type: ignore[misc]
    assert len((await engine.history("chat")).publications) == 1


async def test_a_machine_clock_that_was_ahead_extends_no_ttl(
    engine: MemoryEngine, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        ahead = time.time() + 86_400
        patched.setattr(time, "time", lambda: ahead)
        await engine.publish(publication("chat", "1"), SHORT, "key")
    clock.advance(SHORT.ttl)
    assert list((await engine.history("chat")).publications) == []
    clock.advance(IDEMPOTENCY_WINDOW)
    assert (await engine.publish(publication("chat", "1"), SHORT, "key")).offset == 2


async def test_a_restarted_engine_continues_to_forget_streams(clock: FakeClock) -> None:
    engine = MemoryEngine("memory://", clock=clock)
    await engine.start(Collector())
    await engine.publish(publication("chat", "1"), SHORT)
    await engine.stop()
    clock.advance(SHORT.ttl + STREAM_TTL + 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "SWEEP_EVERY", 0.001)
        await engine.start(Collector())
        await forgotten(engine, "chat")
    await engine.stop()


# Channels that were never published to


async def test_channels_that_were_only_subscribed_to_are_not_kept(engine: MemoryEngine) -> None:
    with grows_by_less_than(500_000):
        for number in range(5000):
            await engine.subscribe(f"room:{number}", SHORT)
            await engine.unsubscribe(f"room:{number}")


async def test_a_channel_that_was_never_published_to_keeps_its_position_for_a_returning_client(
    engine: MemoryEngine,
) -> None:
    left, _ = await engine.subscribe("chat", SHORT)
    assert left.epoch
    await engine.unsubscribe("chat")
    assert (await engine.subscribe("chat", SHORT)).position == left
    await engine.unsubscribe("chat")
    missed = await engine.publish(publication("chat", "1"), SHORT)
    assert missed == (1, left.epoch)
    assert [each.data for each in (await engine.history("chat", left)).publications] == [b"1"]


async def test_no_channel_has_an_epoch_twice(engine: MemoryEngine, clock: FakeClock) -> None:
    seen: set[str] = set()

    async def begin() -> Position:
        position, _ = await engine.subscribe("chat", SHORT)
        assert position.epoch not in seen
        seen.add(position.epoch)
        return await engine.publish(publication("chat", "1"), SHORT)

    await begin()
    await engine.remove_history("chat")
    # No publication came since the removal, but some came before.
    await engine.unsubscribe("chat")
    removed, _ = await engine.subscribe("chat", SHORT)
    assert removed.epoch not in seen
    last = await engine.publish(publication("chat", "2"), SHORT)
    seen.add(last.epoch)
    await engine.unsubscribe("chat")
    for _ in range(2):
        clock.advance(SHORT.ttl + STREAM_TTL + 2)
        await forgotten(engine, "chat")
        await begin()
        await engine.unsubscribe("chat")


async def test_a_removed_history_is_forgotten(engine: MemoryEngine, clock: FakeClock) -> None:
    await engine.publish(publication("chat", "1"), SHORT)
    await engine.remove_history("chat")
    clock.advance(SHORT.ttl + STREAM_TTL + 2)
    await forgotten(engine, "chat")
