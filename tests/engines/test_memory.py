"""What ``memory://`` keeps, and for how long."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import pytest

from hubbub.core.history import MAX_TTL, History
from hubbub.core.publication import START, Position, Publication
from hubbub.engines import memory as module
from hubbub.engines.base import IDEMPOTENCY_WINDOW
from hubbub.engines.memory import STREAM_TTL, MemoryEngine
from hubbub.testing.engine_contract import DEADLINE, Collector, publication

SHORT, LONG = History(size=100, ttl=10), History(size=100, ttl=1_000_000)


class Clock:
    now = 5_000.0

    def __call__(self) -> float:
        return self.now


class Payload:
    """Stands for the bytes of a publication, and tells whether they are still there."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def engine(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryEngine]:
    monkeypatch.setattr(module, "SWEEP_EVERY", 0.001)
    engine = MemoryEngine("memory://", clock=clock)

    class Sink(Collector):
        def on_publication(self, publication: Publication) -> None:
            """Keeps nothing."""

    await engine.start(Sink())
    yield engine
    await engine.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def forgotten(engine: MemoryEngine, channel: str) -> None:
    """Wait until the engine knows nothing of ``channel``. Asking for its top is no use of it."""
    async with asyncio.timeout(DEADLINE):
        while await engine.tops([channel]) != [(START, "")]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@contextmanager
def grows_by_less_than(size: int) -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    try:
        yield
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
        assert grown < size
    finally:
        tracemalloc.stop()


# Expiry


async def test_what_has_expired_goes_without_being_asked_for(engine: MemoryEngine, clock: Clock) -> None:
    payloads: WeakSet[Any] = WeakSet()

    async def publish(channel: str, history: History) -> None:
        payload: Any = Payload()
        payloads.add(payload)
        await engine.publish(Publication(channel, payload, "binary"), history)

    for number in range(20):
        await publish(f"room:{number % 4}", SHORT)
        await publish("long", LONG)
        clock.now += 1
    await engine.subscribe("room:0")
    gc.collect()
    assert len(payloads) > 20
    clock.now += SHORT.ttl + 1
    await until(lambda: len(payloads) == 20)
    assert (await engine.history("room:0")).position.offset == 5
    assert len((await engine.history("long")).publications) == 20


async def test_a_quiet_channel_does_not_keep_others_from_being_forgotten(
    engine: MemoryEngine, clock: Clock
) -> None:
    for channel, history in (("long", LONG), ("short", SHORT), ("heard", SHORT)):
        await engine.publish(publication(channel, "1"), history)
    heard = await engine.subscribe("heard")
    clock.now += SHORT.ttl + STREAM_TTL + 2
    await forgotten(engine, "short")
    (long, _), (kept, _) = await engine.tops(["long", "heard"])
    assert long.offset == 1
    assert kept == heard.position
    # After its last subscriber has left, it is remembered as long as others.
    await engine.unsubscribe("heard")
    clock.now += STREAM_TTL - 1
    await asyncio.sleep(0.01)
    assert (await engine.tops(["heard"]))[0].position == kept
    clock.now += SHORT.ttl + 2
    await forgotten(engine, "heard")


async def test_more_channels_than_one_look_deals_with_are_forgotten(
    engine: MemoryEngine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEPT", 3)
    names = [f"room:{number}" for number in range(50)]
    for name in names:
        await engine.publish(publication(name, "1"), SHORT, name)
    clock.now += SHORT.ttl + STREAM_TTL + IDEMPOTENCY_WINDOW
    for name in names:
        await forgotten(engine, name)
    # Nothing is left to be looked at, and it begins anew.
    assert (await engine.publish(publication("room:0", "1"), SHORT, "room:0")).offset == 1


@pytest.mark.parametrize("by", ["publishing", "subscribing"])
async def test_a_shorter_ttl_holds_for_what_is_there_already(
    engine: MemoryEngine, clock: Clock, by: str
) -> None:
    payload: Any = Payload()
    payloads = WeakSet([payload])
    await engine.publish(Publication("chat", payload, "binary"), LONG)
    del payload
    clock.now += SHORT.ttl
    if by == "publishing":
        await engine.publish(publication("chat", "2"), SHORT)
    else:
        await engine.subscribe("chat", SHORT)
    # What was published just now has the whole time.
    clock.now += 1
    await until(lambda: not payloads)


async def test_a_history_for_as_long_as_possible_is_kept(engine: MemoryEngine, clock: Clock) -> None:
    await engine.publish(publication("chat", "1"), History(size=10, ttl=MAX_TTL))
    for _ in range(5):
        clock.now += STREAM_TTL
        await asyncio.sleep(0.01)
    assert len((await engine.history("chat")).publications) == 1


async def test_a_clock_of_the_machine_that_was_ahead_stretches_nothing(
    engine: MemoryEngine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        ahead = time.time() + 86_400
        patched.setattr(time, "time", lambda: ahead)
        await engine.publish(publication("chat", "1"), SHORT, "key")
    clock.now += SHORT.ttl
    assert list((await engine.history("chat")).publications) == []
    clock.now += IDEMPOTENCY_WINDOW
    assert (await engine.publish(publication("chat", "1"), SHORT, "key")).offset == 2


async def test_an_engine_that_is_started_again_goes_on_forgetting(clock: Clock) -> None:
    engine = MemoryEngine("memory://", clock=clock)
    await engine.start(Collector())
    await engine.publish(publication("chat", "1"), SHORT)
    await engine.stop()
    clock.now += SHORT.ttl + STREAM_TTL + 2
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "SWEEP_EVERY", 0.001)
        await engine.start(Collector())
        await forgotten(engine, "chat")
    await engine.stop()


# Channels that were never published to


async def test_channels_that_were_only_entered_and_left_are_not_kept(engine: MemoryEngine) -> None:
    with grows_by_less_than(500_000):
        for number in range(5000):
            await engine.subscribe(f"room:{number}", SHORT)
            await engine.unsubscribe(f"room:{number}")


async def test_a_client_comes_back_to_a_channel_that_was_never_published_to(engine: MemoryEngine) -> None:
    left, _ = await engine.subscribe("chat", SHORT)
    assert left.epoch
    await engine.unsubscribe("chat")
    assert (await engine.subscribe("chat", SHORT)).position == left
    await engine.unsubscribe("chat")
    missed = await engine.publish(publication("chat", "1"), SHORT)
    assert missed == (1, left.epoch)
    assert [each.data for each in (await engine.history("chat", left)).publications] == [b"1"]


async def test_no_channel_has_an_epoch_a_second_time(engine: MemoryEngine, clock: Clock) -> None:
    seen: set[str] = set()

    async def begin() -> Position:
        position, _ = await engine.subscribe("chat", SHORT)
        assert position.epoch not in seen
        seen.add(position.epoch)
        return await engine.publish(publication("chat", "1"), SHORT)

    await begin()
    await engine.remove_history("chat")
    # It has never been published to since, but it was before.
    await engine.unsubscribe("chat")
    removed, _ = await engine.subscribe("chat", SHORT)
    assert removed.epoch not in seen
    last = await engine.publish(publication("chat", "2"), SHORT)
    seen.add(last.epoch)
    await engine.unsubscribe("chat")
    for _ in range(2):
        clock.now += SHORT.ttl + STREAM_TTL + 2
        await forgotten(engine, "chat")
        await begin()
        await engine.unsubscribe("chat")


async def test_a_removed_history_is_forgotten(engine: MemoryEngine, clock: Clock) -> None:
    await engine.publish(publication("chat", "1"), SHORT)
    await engine.remove_history("chat")
    clock.now += SHORT.ttl + STREAM_TTL + 2
    await forgotten(engine, "chat")


# Idempotency keys


async def test_a_long_key_takes_no_more_memory_than_a_short_one(engine: MemoryEngine) -> None:
    with grows_by_less_than(2_000_000):
        for number in range(1000):
            await engine.publish(publication("chat", "1"), None, f"{number}" * 10_000)
    first = await engine.publish(publication("kept", "1"), SHORT, "x" * 10_000 + "1")
    assert await engine.publish(publication("kept", "1"), SHORT, "x" * 10_000 + "1") == first
    assert await engine.publish(publication("kept", "1"), SHORT, "x" * 10_000 + "2") != first


async def test_keys_are_bounded_and_the_oldest_go_first(
    engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 10)
    for number in range(15):
        assert (await engine.publish(publication("chat", "1"), SHORT, str(number))).offset == number + 1
    assert (await engine.publish(publication("chat", "1"), SHORT, "14")).offset == 15
    assert (await engine.publish(publication("chat", "1"), SHORT, "4")).offset == 16
    assert caplog.text.count("idempotency keys") == 1


async def test_a_key_that_is_used_again_after_its_time_is_as_good_as_new(
    engine: MemoryEngine, clock: Clock
) -> None:
    await engine.stop()
    sink = Collector()
    await engine.start(sink)
    for _ in range(3):
        for _ in range(2):
            await engine.publish(publication("chat", "1"), None, "key")
        clock.now += IDEMPOTENCY_WINDOW
    assert sink.texts("chat") == ["1"] * 3


class Counting(deque[Any]):
    """Counts what is looked at."""

    looked_at = 0

    def __iter__(self) -> Iterator[Any]:
        for each in super().__iter__():
            self.looked_at += 1
            yield each


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("since", [None, 0, 1, 899, 900, 901, 950, 999, 1000, 1001])
async def test_a_page_is_what_was_asked_for(engine: MemoryEngine, since: int | None, reverse: bool) -> None:
    for _ in range(1000):
        top = await engine.publish(publication("chat", "x"), SHORT)
    after = None if since is None else Position(since, top.epoch)
    for limit in (None, 0, 1, 7, 1000):
        page = await engine.history("chat", after, limit, reverse)
        found = [each.offset for each in page.publications]
        offsets = range(901, 1001)
        if since is not None:
            offsets = range(901, min(1001, since)) if reverse else range(max(901, since + 1), 1001)
        assert found == list(reversed(offsets) if reverse else offsets)[:limit]


async def test_a_page_of_a_long_history_does_not_take_the_time_of_all_of_it(engine: MemoryEngine) -> None:
    for _ in range(1000):
        top = await engine.publish(publication("chat", "x"), History(size=1000, ttl=10))
    stream = engine._streams["chat"]
    stream.publications = counting = Counting(stream.publications)
    page = await engine.history("chat", Position(5, top.epoch), 10)
    assert [each.offset for each in page.publications] == [*range(6, 16)]
    assert counting.looked_at < 100
