"""The worker: files that are locked, removed or broken while they are in use, and jobs that fail."""

# Files are read and written on the event loop: they are small.
# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from hubbub.core.publication import START, Position
from hubbub.engines.base import PresenceChange
from hubbub.engines.sqlite import engine as module
from hubbub.exceptions import EngineUnavailable, InvalidData
from hubbub.testing.engine_contract import DEADLINE, HISTORY, publication
from tests.engines.sqlite.disk import Disk
from tests.engines.sqlite.helpers import locked, remove, rows, started

# Locks


async def test_publishing_to_a_locked_file_fails_in_time_and_works_afterwards(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(path) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        first = await engine.publish(publication("chat", "1"))
        with locked(path):
            monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.2)
            publishing = [engine.publish(publication("chat", "never")) for _ in range(3)]
            results = await asyncio.gather(*publishing, return_exceptions=True)
            assert [type(each) for each in results] == [EngineUnavailable] * 3
            assert "within 0.2 s" in str(results[0])
            # Reading needs no lock.
            assert (await engine.history("chat")).position == first
            monkeypatch.undo()
            publishing_late = asyncio.create_task(engine.publish(publication("chat", "2")))
            await asyncio.sleep(0.05)
            assert not publishing_late.done()
        assert (await publishing_late).offset == 2
        await collector.heard("chat", ["1", "2"])
        assert collector.reconnects == 0


async def test_a_job_that_was_cancelled_is_not_done(path: Path) -> None:
    async with started(path) as (engine, _):
        with locked(path):
            publishing = asyncio.create_task(engine.publish(publication("chat", "never"), HISTORY))
            await asyncio.sleep(0.05)
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
        assert (await engine.publish(publication("chat", "1"), HISTORY)).offset == 1


async def test_a_subscription_that_cannot_be_declared_again_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(path) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        with locked(path):
            monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.1)
            with pytest.raises(EngineUnavailable):
                await engine.subscribe("chat", HISTORY)
            with pytest.raises(EngineUnavailable):
                await engine.subscribe("never")
            monkeypatch.undo()
        for channel in ("never", "chat"):
            await engine.publish(publication(channel, "1"))
        await collector.heard("chat", ["1"])
        assert collector.texts("never") == []


# Outages


@pytest.mark.parametrize("with_wal", [True, False], ids=["with its WAL", "the file alone"])
async def test_a_file_that_is_removed_is_created_again(path: Path, with_wal: bool) -> None:
    async with started(path) as (engine, collector), started(path) as (other, collector_of_other):
        before, _ = await engine.subscribe("chat", HISTORY)
        await other.subscribe("chat", HISTORY)
        await engine.publish(publication("chat", "1"))
        await collector_of_other.heard("chat", ["1"])
        if with_wal:
            remove(path)
        else:
            path.unlink()
        await collector.until(lambda: collector.reconnects == 1)
        await collector_of_other.until(lambda: collector_of_other.reconnects == 1)
        # The channel has its history without being declared again by the node.
        after = await engine.publish(publication("chat", "2"))
        assert after.offset == 1
        assert after.epoch != before.epoch
        for each in (collector, collector_of_other):
            await each.heard("chat", ["1", "2"])
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_file_that_is_replaced_is_opened_again(path: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    async with started(path) as (engine, _):
        first = await engine.publish(publication("chat", "1"), HISTORY)
    shutil.copy(path, backup)
    async with started(path) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        for number in (2, 3):
            await engine.publish(publication("chat", str(number)))
        remove(path)
        backup.rename(path)
        await collector.until(lambda: collector.reconnects == 1)
        assert (await engine.history("chat")).position == first
        assert await engine.publish(publication("chat", "other 2")) == (2, first.epoch)
        await collector.heard("chat", ["2", "3", "other 2"])


async def test_the_engine_reconnects_when_a_missing_directory_is_back(path: Path, tmp_path: Path) -> None:
    directory, elsewhere = tmp_path / "here", tmp_path / "there"
    directory.mkdir()
    async with started(directory / "hub.db") as (engine, collector):
        await engine.subscribe("chat")
        for number in (1, 2):
            directory.rename(elsewhere)
            # Reported before a call fails, and only once, however many calls fail.
            for _ in range(2):
                with pytest.raises(EngineUnavailable, match="directory"):
                    await engine.publish(publication("chat", "never"))
                assert (collector.disconnects, collector.reconnects) == (number, number - 1)
            elsewhere.rename(directory)
            await collector.until(lambda n=number: collector.reconnects == n)  # type: ignore[misc]
            assert collector.disconnects == number
        await engine.publish(publication("chat", "2"))
        await collector.heard("chat", ["2"])


async def test_an_outage_with_several_reasons_is_reported_once(tmp_path: Path) -> None:
    directory, elsewhere, useless = tmp_path / "here", tmp_path / "there", tmp_path / "useless"
    directory.mkdir()
    useless.mkdir()
    (useless / "hub.db").write_bytes(b"a letter, not a database" * 100)
    async with started(directory / "hub.db") as (engine, collector):
        directory.rename(elsewhere)
        await collector.until(lambda: collector.disconnects == 1)
        useless.rename(directory)
        reason = ""
        async with asyncio.timeout(DEADLINE):
            while "not a database" not in reason:
                with pytest.raises(EngineUnavailable) as info:
                    await engine.history("chat")
                reason = str(info.value)
        directory.rename(useless)
        elsewhere.rename(directory)
        await collector.until(lambda: collector.reconnects == 1)
        assert collector.disconnects == 1


async def test_a_file_that_is_locked_when_it_is_opened_again_is_an_outage(path: Path, disk: Disk) -> None:
    async with started(path) as (engine, collector):
        await engine.publish(publication("chat", "1"), HISTORY)
        with locked(path):
            disk.broken = "SELECT packed"
            with pytest.raises(EngineUnavailable, match="disk I/O error"):
                await engine.history("chat")
            disk.broken = ""
            await collector.until(lambda: collector.disconnects == 1)
            publishing = asyncio.create_task(engine.publish(publication("plain", "1")))
            assert collector.reconnects == 0
        assert await publishing == START
        assert (collector.disconnects, collector.reconnects) == (1, 1)


async def test_an_engine_that_stops_during_an_outage_reports_nothing_more(tmp_path: Path) -> None:
    directory = tmp_path / "here"
    directory.mkdir()
    async with started(directory / "hub.db") as (_, collector):
        directory.rename(tmp_path / "there")
        await collector.until(lambda: collector.disconnects == 1)
    assert (collector.disconnects, collector.reconnects) == (1, 0)


async def test_leases_are_lost_with_the_file(path: Path) -> None:
    async with started(path) as (engine, collector), started(path) as (other, _):
        entered = [PresenceChange("chat", "a", b"data")]
        assert await engine.update_presence("one", 60, entered, begin=True)
        remove(path)
        await collector.until(lambda: collector.reconnects == 1)
        assert not await engine.update_presence("one", 60)
        assert await other.presence("chat") == {}
        assert await engine.update_presence("two", 60, entered, begin=True)
        assert await other.presence("chat") == {"a": b"data"}


async def test_after_an_error_of_the_disk_the_file_is_opened_again(path: Path, disk: Disk) -> None:
    async with started(path) as (engine, collector):
        disk.broken = "INSERT"
        with pytest.raises(EngineUnavailable, match="disk I/O error"):
            await engine.publish(publication("chat", "1"))
        disk.broken = ""
        await collector.until(lambda: collector.reconnects == 1)
        assert await engine.publish(publication("chat", "1")) == START


# Jobs that fail


async def test_a_full_disk_refuses_only_publications_that_do_not_fit(path: Path, disk: Disk) -> None:
    async with started(path) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        disk.pages = 50
        texts = ["1", "x" * 1_000_000, "2"]
        results = await asyncio.gather(
            *(engine.publish(publication("chat", text)) for text in texts), return_exceptions=True
        )
        assert isinstance(results[1], EngineUnavailable)
        assert "full" in str(results[1])
        assert [each.offset for each in results[::2] if isinstance(each, Position)] == [1, 2]
        await collector.heard("chat", ["1", "2"])
        assert collector.reconnects == 0


async def test_publications_of_one_transaction_fail_one_by_one(path: Path, disk: Disk) -> None:
    disk.longest_value = 1_000_000
    async with started(path) as (engine, _):
        texts = ["1", "x" * 1_000_000, "2"]
        results = await asyncio.gather(
            *(engine.publish(publication("chat", text), HISTORY) for text in texts), return_exceptions=True
        )
        assert isinstance(results[1], InvalidData)
        page = await engine.history("chat")
        assert [(each.offset, each.data) for each in page.publications] == [(1, b"1"), (2, b"2")]
