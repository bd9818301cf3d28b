"""Presence is kept known in rounds, and a round ends however many connections come and go meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from hubbub.core.publication import Publication
from hubbub.engines.base import PresenceChange
from hubbub.exceptions import HubNotRunning
from hubbub.node import presence
from hubbub.node.presence import PresenceTracker, encode_member
from hubbub.testing.fake_engine import FakeEngine, FakeServer
from hubbub.types import PresenceEntry
from tests.clients import DEADLINE


class SlowEngine(FakeEngine):
    """Takes a while to be told of presence: until the test lets it."""

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

    async def take(self) -> None:
        """Wait until it is told of something, and take it."""
        async with asyncio.timeout(DEADLINE):
            await self.asked.wait()
        self.asked.clear()
        self.turns.put_nowait(None)


class Sink:
    def on_publication(self, publication: object) -> None: ...
    def on_disconnect(self, reason: str) -> None: ...
    def on_reconnect(self) -> None: ...


@pytest.fixture
async def engine() -> AsyncIterator[SlowEngine]:
    engine = SlowEngine(FakeServer())
    await engine.start(Sink())
    yield engine
    await engine.stop()


@pytest.fixture
async def present(engine: SlowEngine) -> AsyncIterator[PresenceTracker]:
    present = PresenceTracker(engine, ttl=60)
    yield present
    for _ in range(10):
        engine.turns.put_nowait(None)
    await present.stop()


def entering(present: PresenceTracker, connection: str) -> asyncio.Task[bool]:
    data = encode_member(PresenceEntry(connection))
    return asyncio.create_task(present.enter("room", connection, data))


def connections(changes: Sequence[PresenceChange]) -> list[str]:
    return [change.connection for change in changes]


async def test_who_joins_does_not_wait_for_those_who_come_later(
    engine: SlowEngine, present: PresenceTracker
) -> None:
    waiting = entering(present, "0")
    for number in range(1, 6):
        async with asyncio.timeout(DEADLINE):
            await engine.asked.wait()
        # Another one comes while the engine is being told of the one before.
        following = entering(present, str(number))
        await asyncio.sleep(0)
        await engine.take()
        async with asyncio.timeout(DEADLINE):
            assert await waiting
        waiting = following
    # Each round has covered those who had come by then.
    assert [connections(changes) for changes in engine.updates] == [[str(number)] for number in range(5)]
    await engine.take()
    assert await waiting


async def test_the_others_are_told_in_each_round(engine: SlowEngine, present: PresenceTracker) -> None:
    told: list[str] = []
    publish = engine.publish

    async def publishing(publication: Publication, *options: object) -> object:
        told.extend(connection for connection, _ in presence.decode_news(publication.data))
        return await publish(publication)

    engine.publish = publishing  # type: ignore[assignment,method-assign]
    entering(present, "0")
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    entering(present, "1")
    await asyncio.sleep(0)
    await engine.take()
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    assert told == ["0"]


async def test_those_of_a_part_of_a_round_go_on_when_it_is_done(
    engine: SlowEngine, present: PresenceTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "CHUNK", 2)
    tasks = [entering(present, str(number)) for number in range(4)]
    await asyncio.sleep(0)
    await engine.take()
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*tasks[:2])
        await engine.asked.wait()
    assert not any(task.done() for task in tasks[2:])
    await engine.take()
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*tasks)
    assert list(map(connections, engine.updates)) == [["0", "1"], ["2", "3"]]


async def test_who_has_left_before_it_was_known_to_be_there_is_not_there(
    engine: SlowEngine, present: PresenceTracker
) -> None:
    task = entering(present, "0")
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    present.leave("room", "0")
    await engine.take()
    await engine.take()
    async with asyncio.timeout(DEADLINE):
        assert not await task
        while await engine.presence("room"):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_who_waits_goes_on_when_the_engine_cannot_be_told(
    engine: SlowEngine, present: PresenceTracker
) -> None:
    first = entering(present, "0")
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    second = entering(present, "1")
    await asyncio.sleep(0)
    engine.is_disconnected = True
    await engine.take()
    async with asyncio.timeout(DEADLINE):
        assert await first
        assert await second
    engine.is_disconnected = False
    present.has_trouble()
    await engine.take()
    async with asyncio.timeout(DEADLINE):
        while sorted(await engine.presence("room")) != ["0", "1"]:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_who_enters_as_somebody_else_waits_until_that_is_known(
    engine: SlowEngine, present: PresenceTracker
) -> None:
    first = entering(present, "0")
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    present.leave("room", "0")
    other = encode_member(PresenceEntry("0", "bob"))
    second = asyncio.create_task(present.enter("room", "0", other))
    await asyncio.sleep(0)
    await engine.take()
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    assert not second.done()
    await engine.take()
    async with asyncio.timeout(DEADLINE):
        assert (await first, await second) == (False, True)
    assert await engine.presence("room") == {"0": other}


async def test_nothing_is_kept_of_those_who_come_and_go_while_the_engine_is_away(
    engine: SlowEngine, present: PresenceTracker
) -> None:
    first = entering(present, "first")
    await engine.take()
    await first
    engine.disconnect()
    present.leave("room", "first")
    for number in range(100):
        task = entering(present, f"guest{number}")
        await asyncio.sleep(0)
        present.leave("room", f"guest{number}")
        assert not await asyncio.wait_for(task, DEADLINE)
    assert set(present._changes) <= {("room", "first"), ("room", "guest0")}
    engine.reconnect()
    present.has_trouble()
    last = entering(present, "last")
    for _ in range(10):
        engine.turns.put_nowait(None)
    assert await asyncio.wait_for(last, DEADLINE)
    assert list(await engine.presence("room")) == ["last"]


async def test_who_leaves_while_the_engine_is_told_of_it_is_removed_again(
    engine: SlowEngine, present: PresenceTracker
) -> None:
    coming = entering(present, "ann")
    async with asyncio.timeout(DEADLINE):
        await engine.asked.wait()
    present.leave("room", "ann")
    for _ in range(2):
        await engine.take()
    assert not await coming
    assert list(await engine.presence("room")) == []


async def test_nothing_begins_after_the_stop(engine: SlowEngine) -> None:
    present = PresenceTracker(engine, ttl=60)
    await present.stop()
    before = asyncio.all_tasks()
    with pytest.raises(HubNotRunning):
        await asyncio.wait_for(entering(present, "ann"), 1)
    present.start()
    assert asyncio.all_tasks() == before


async def test_a_clock_that_is_set_back_is_settled_as_soon_as_any_other(
    engine: SlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    present = PresenceTracker(engine, ttl=60)
    coming = entering(present, "ann")
    await engine.take()
    await coming
    now -= 3600
    leaving = entering(present, "bob")
    await engine.take()
    await leaving
    now += presence.SETTLED
    assert present.is_settled
    for _ in range(10):
        engine.turns.put_nowait(None)
    await present.stop()
