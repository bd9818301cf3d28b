"""Pruning: which rows and streams are deleted, and when."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from hubbub.core.history import History
from hubbub.engines.base import IDEMPOTENCY_WINDOW, STREAM_TTL
from hubbub.engines.sqlite import pruning, worker
from hubbub.engines.sqlite.pruning import KEEP
from hubbub.engines.sqlite.store import Store
from hubbub.testing.engine_contract import HISTORY, publication
from tests.clock import FakeClock
from tests.engines.sqlite.helpers import found, python, rows, started


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The machine's clock; pruning itself does not wait."""
    monkeypatch.setattr(worker, "PRUNE_EVERY", 0.02)
    monkeypatch.setattr(worker, "FORGET_EVERY", 0.02)
    return FakeClock(1_000_000.0)


async def test_expired_rows_and_unused_streams_are_deleted(path: Path, clock: FakeClock) -> None:
    async with started(path, clock=clock) as (engine, _):
        for number in range(10):
            await engine.publish(publication("plain", str(number)), None, f"key {number}")
            await engine.publish(publication("long", str(number)), History(size=3, ttl=86_400))
            await engine.publish(publication("short", str(number)), History(size=100, ttl=0.1))
        clock.advance(KEEP + 1)
        await found(
            path,
            "SELECT channel, offset FROM hubbub_publications ORDER BY id",
            [("long", n) for n in (8, 9, 10)],
        )
        clock.advance(IDEMPOTENCY_WINDOW)
        await found(path, "SELECT * FROM hubbub_keys", [])
        clock.advance(STREAM_TTL)
        await found(path, "SELECT channel FROM hubbub_streams", [("long",)])
        assert [each.offset for each in (await engine.history("long")).publications] == [8, 9, 10]
        # A stream that was forgotten begins again.
        assert (await engine.publish(publication("short", "again"), HISTORY)).offset == 1


async def test_pruning_keeps_up_with_many_publications(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "PRUNED", 5)
    clock = FakeClock(1_000_000.0)
    async with started(path, clock=clock) as (engine, _):
        for number in range(400):
            history = History(size=10, ttl=3600) if number % 2 else None
            channel = "kept" if history else "plain"
            await engine.publish(publication(channel, str(number)), history)
        clock.advance(KEEP + 1)
        # With five rows a second, it would take more than a minute.
        await found(path, "SELECT count(*) FROM hubbub_publications", [(10,)])


async def test_a_stream_that_is_read_is_not_forgotten(path: Path, clock: FakeClock) -> None:
    async with started(path, clock=clock) as (engine, _):
        history = History(size=3, ttl=0.1)
        position = await engine.publish(publication("chat", "1"), history)
        await engine.publish(publication("unread", "1"), history)
        for _ in range(5):
            clock.advance(STREAM_TTL / 2)
            assert (await engine.history("chat")).position == position
            await found(path, "SELECT used FROM hubbub_streams WHERE channel = 'chat'", [(clock(),)])
        await found(path, "SELECT channel FROM hubbub_streams", [("chat",)])


async def test_a_new_ttl_applies_to_earlier_publications(path: Path) -> None:
    async with started(path) as (engine, _):
        await engine.publish(publication("chat", "1"), History(size=3, ttl=100))
        await engine.subscribe("chat", History(size=3, ttl=1000))
        await engine.publish(publication("chat", "2"))
    assert rows(path, "SELECT round(expires - time) FROM hubbub_publications") == [(1000.0,), (1000.0,)]


#: A process that publishes and ends, such as ``hubbub publish`` in a cron job.
SHORT_LIVED = """
import asyncio, sys
from hubbub.engines import engine_for
from hubbub.testing.engine_contract import Collector, publication
from hubbub.engines.sqlite import pruning
from hubbub.core.history import History

async def main(url, count):
    pruning.KEEP = 0.0
    engine = engine_for(url)
    await engine.start(Collector())
    texts = map(str, range(count))
    await asyncio.gather(*(engine.publish(publication("chat", text), History(size=10)) for text in texts))
    await engine.stop()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def publish_and_end(path: Path, count: int) -> None:
    async with python(SHORT_LIVED, f"sqlite:///{path}", str(count)) as process:
        assert await process.wait() == 0


async def test_rows_that_ended_processes_have_left_are_deleted_by_others(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "TRIMMED", 0)
    # Another stream comes before it, and one sweep does not reach both.
    monkeypatch.setattr(pruning, "SWEPT", 1)
    async with started(path, clock=clock) as (engine, _):
        await engine.publish(publication("a", "1"), HISTORY)
        # The process that publishes and ends finds no row that is old enough to be deleted.
        with closing(Store(str(path), "hubbub", clock)) as store, store.transaction():
            for number in range(2000):
                store.publish(publication("chat", str(number)), History(size=10), None, store.clock.now())
        assert rows(path, "SELECT count(*) FROM hubbub_publications WHERE channel = 'chat'") == [(2000,)]
        clock.advance(KEEP + 1)
        await found(
            path,
            "SELECT count(*), max(offset) FROM hubbub_publications WHERE channel = 'chat'",
            [(10, 2000)],
        )


async def test_processes_that_publish_and_end_leave_no_more_than_the_history(path: Path) -> None:
    for _ in range(3):
        await publish_and_end(path, 100)
    # The rows of the last transaction are too young to be deleted by it.
    (count,) = rows(path, "SELECT count(*) FROM hubbub_publications")[0]
    assert count < 150
    assert rows(path, "SELECT top FROM hubbub_streams") == [(300,)]


def test_one_publication_deletes_a_bounded_number_of_rows(path: Path) -> None:
    clock = FakeClock(1_000_000.0)
    with closing(Store(str(path), "hubbub", clock)) as store:

        def publish(count: int) -> None:
            for number in range(count):
                with store.transaction():
                    store.publish(
                        publication("chat", str(number)), History(size=10), None, store.clock.tick()
                    )

        publish(100)
        assert rows(path, "SELECT count(*) FROM hubbub_publications") == [(100,)]
        clock.advance(KEEP + 1)
        publish(1)
        assert rows(path, "SELECT min(offset) FROM hubbub_publications") == [(1 + pruning.TRIMMED,)]
        publish(20)
        # Rows younger than a minute are kept for processes that are behind.
        assert rows(path, "SELECT min(offset) FROM hubbub_publications") == [(101,)]
