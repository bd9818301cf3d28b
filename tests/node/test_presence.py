"""The presence tracker: entries are made and removed in rounds, under one lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from hubbub.core.publication import Publication
from hubbub.engines.base import PresenceChange
from hubbub.exceptions import HubNotRunning
from hubbub.node.presence import CHUNK, RENEWALS, SETTLE_TIME, PresenceTracker, decode_diff, encode_entry
from hubbub.testing.fake_engine import FakeEngine, FakeServer
from hubbub.types import PresenceEntry
from tests.clients import DEADLINE
from tests.clock import FakeClock

TTL = 60.0


class SlowEngine(FakeEngine):
    """Answers updates of presence only when the test lets it."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server)
        self.updates: list[list[PresenceChange]] = []
        self.turns: asyncio.Queue[None] = asyncio.Queue()
        self.asked = asyncio.Event()

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        self.updates.append(list(changes))
        self.asked.set()
        await self.turns.get()
        return await super().update_presence(lease, ttl, changes, begin)

    async def answer(self) -> None:
        """Wait for an update, and answer it."""
        async with asyncio.timeout(DEADLINE):
            await self.asked.wait()
        self.asked.clear()
        self.turns.put_nowait(None)

    def answer_all(self) -> None:
        """Answer the next updates at once."""
        for _ in range(10):
            self.turns.put_nowait(None)


class Sink:
    def on_publication(self, publication: object) -> None: ...
    def on_disconnect(self, reason: str) -> None: ...
    def on_reconnect(self) -> None: ...


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(now=1000.0)


@pytest.fixture
def wall_clock() -> FakeClock:
    return FakeClock(now=1_000_000.0)


@pytest.fixture
async def engine(clock: FakeClock) -> AsyncIterator[SlowEngine]:
    engine = SlowEngine(FakeServer(clock))
    await engine.start(Sink())
    yield engine
    await engine.stop()


@pytest.fixture
async def tracker(
    engine: SlowEngine, clock: FakeClock, wall_clock: FakeClock
) -> AsyncIterator[PresenceTracker]:
    tracker = PresenceTracker(engine, TTL, clock, wall_clock)
    yield tracker
    engine.answer_all()
    await tracker.stop()


def tracking(tracker: PresenceTracker, connection: str) -> asyncio.Task[bool]:
    data = encode_entry(PresenceEntry(connection))
    return asyncio.create_task(tracker.track("room", connection, data))


def connections(changes: Sequence[PresenceChange]) -> list[str]:
    return [change.connection for change in changes]


# Rounds


async def test_a_connection_does_not_wait_for_those_that_are_tracked_later(
    engine: SlowEngine, tracker: PresenceTracker
) -> None:
    waiting = tracking(tracker, "0")
    for number in range(1, 6):
        async with asyncio.timeout(DEADLINE):
            await engine.asked.wait()
        # Another connection is tracked while the engine enters the one before.
        following = tracking(tracker, str(number))
        await asyncio.sleep(0)
        await engine.answer()
        async with asyncio.timeout(DEADLINE):
            assert await waiting
        waiting = following
    # Each round has covered the connections that were there by then.
    assert [connections(changes) for changes in engine.updates] == [[str(number)] for number in range(5)]
    await engine.answer()
    assert await waiting


async def test_each_round_sends_a_diff(engine: SlowEngine, tracker: PresenceTracker) -> None:
    sent: list[str] = []
    publish = engine.publish

    async def recorded(publication: Publication, *options: object) -> object:
        sent.extend(connection for connection, _ in decode_diff(publication.data))
        return await publish(publication)

    engine.publish = recorded  # type: ignore[assignment,method-assign]
    tracking(tracker, "0")
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    tracking(tracker, "1")
    await asyncio.sleep(0)
    await engine.answer()
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    assert sent == ["0"]


async def test_a_connection_does_not_wait_for_the_rest_of_a_long_round(
    engine: SlowEngine, tracker: PresenceTracker
) -> None:
    tasks = [tracking(tracker, str(number)) for number in range(2 * CHUNK)]
    await asyncio.sleep(0)
    await engine.answer()
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*tasks[:CHUNK])
        await engine.asked.wait()
    assert not any(task.done() for task in tasks[CHUNK:])
    await engine.answer()
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*tasks)
    numbers = [str(number) for number in range(2 * CHUNK)]
    assert list(map(connections, engine.updates)) == [numbers[:CHUNK], numbers[CHUNK:]]


async def test_a_connection_that_leaves_before_it_is_entered_is_not_present(
    engine: SlowEngine, tracker: PresenceTracker
) -> None:
    task = tracking(tracker, "0")
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    tracker.untrack("room", "0")
    await engine.answer()
    await engine.answer()
    async with asyncio.timeout(DEADLINE):
        assert not await task
        while await engine.presence("room"):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_connection_that_is_tracked_with_another_entry_waits_until_that_is_entered(
    engine: SlowEngine, tracker: PresenceTracker
) -> None:
    first = tracking(tracker, "0")
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    tracker.untrack("room", "0")
    other = encode_entry(PresenceEntry("0", "bob"))
    second = asyncio.create_task(tracker.track("room", "0", other))
    await asyncio.sleep(0)
    await engine.answer()
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    assert not second.done()
    await engine.answer()
    async with asyncio.timeout(DEADLINE):
        assert (await first, await second) == (False, True)
    assert await engine.presence("room") == {"0": other}


async def test_a_connection_that_leaves_while_it_is_entered_is_removed_again(
    engine: SlowEngine, tracker: PresenceTracker
) -> None:
    joining = tracking(tracker, "ann")
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    tracker.untrack("room", "ann")
    for _ in range(2):
        await engine.answer()
    assert not await joining
    assert list(await engine.presence("room")) == []


# Outages


async def test_a_connection_does_not_wait_for_the_end_of_an_outage(
    engine: SlowEngine, tracker: PresenceTracker
) -> None:
    first = tracking(tracker, "0")
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    second = tracking(tracker, "1")
    await asyncio.sleep(0)
    engine.is_disconnected = True
    await engine.answer()
    async with asyncio.timeout(DEADLINE):
        assert await first
        assert await second
    assert "Lost the fake server" in tracker.error
    engine.is_disconnected = False
    tracker.notice_outage()
    await engine.answer()
    async with asyncio.timeout(DEADLINE):
        while sorted(await engine.presence("room")) != ["0", "1"]:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_connections_that_come_and_go_during_an_outage_leave_nothing_to_be_done(
    engine: SlowEngine, tracker: PresenceTracker
) -> None:
    first = tracking(tracker, "first")
    await engine.answer()
    await first
    engine.disconnect()
    tracker.untrack("room", "first")
    for number in range(100):
        task = tracking(tracker, f"guest{number}")
        await asyncio.sleep(0)
        tracker.untrack("room", f"guest{number}")
        assert not await asyncio.wait_for(task, DEADLINE)
    engine.reconnect()
    tracker.notice_outage()
    last = tracking(tracker, "last")
    engine.answer_all()
    assert await asyncio.wait_for(last, DEADLINE)
    # The first guest may have been under way when the outage began.
    assert {connection for update in engine.updates for connection in connections(update)} <= {
        "first",
        "guest0",
        "last",
    }
    assert list(await engine.presence("room")) == ["last"]


# Time


async def test_the_lease_is_renewed_in_time(
    engine: SlowEngine, tracker: PresenceTracker, clock: FakeClock
) -> None:
    joining = tracking(tracker, "ann")
    await engine.answer()
    await joining
    renewals = 3
    for _ in range(renewals):
        clock.advance(TTL / RENEWALS)
        await engine.answer()
        # Until the next renewal is set.
        await clock.pass_time(0.1, 0.1)
    assert engine.updates[1:] == [[]] * renewals


async def test_a_tracker_is_settled_after_a_while_without_an_outage(
    tracker: PresenceTracker, wall_clock: FakeClock
) -> None:
    assert not tracker.is_settled
    wall_clock.advance(SETTLE_TIME)
    assert tracker.is_settled
    tracker.notice_outage()
    assert not tracker.is_settled
    wall_clock.advance(SETTLE_TIME)
    assert tracker.is_settled


async def test_a_machine_that_was_asleep_is_not_settled(
    engine: SlowEngine, tracker: PresenceTracker, clock: FakeClock, wall_clock: FakeClock
) -> None:
    joining = tracking(tracker, "ann")
    await engine.answer()
    await joining
    # The other clock stands still meanwhile.
    wall_clock.advance(3600)
    assert tracker.is_settled
    clock.advance(TTL / RENEWALS)
    await engine.answer()
    assert not tracker.is_settled


async def test_a_wall_clock_that_is_set_back_is_settled_as_soon_as_any_other(
    engine: SlowEngine, tracker: PresenceTracker, wall_clock: FakeClock
) -> None:
    joining = tracking(tracker, "ann")
    await engine.answer()
    await joining
    wall_clock.advance(-3600)
    joining = tracking(tracker, "bob")
    await engine.answer()
    await joining
    wall_clock.advance(SETTLE_TIME)
    assert tracker.is_settled


# The end


async def test_a_tracker_that_has_stopped_begins_nothing(
    engine: SlowEngine, clock: FakeClock, wall_clock: FakeClock
) -> None:
    tracker = PresenceTracker(engine, TTL, clock, wall_clock)
    await tracker.stop()
    before = asyncio.all_tasks()
    with pytest.raises(HubNotRunning):
        await asyncio.wait_for(tracking(tracker, "ann"), 1)
    tracker.start()
    assert asyncio.all_tasks() == before


async def test_a_tracker_that_stops_removes_its_entries(
    engine: SlowEngine, clock: FakeClock, wall_clock: FakeClock
) -> None:
    tracker = PresenceTracker(engine, TTL, clock, wall_clock)
    joining = tracking(tracker, "ann")
    await engine.answer()
    await joining
    assert list(await engine.presence("room")) == ["ann"]
    engine.answer_all()
    await tracker.stop()
    clock.advance(1)
    await engine.expire_presence(0)
    assert list(await engine.presence("room")) == []
