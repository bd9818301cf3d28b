"""The reader: which publications a node receives, and how many at once."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from hubbub.core.history import History
from hubbub.core.publication import Publication
from hubbub.engines.sqlite import pruning, reader
from hubbub.testing.engine_contract import DEADLINE, HISTORY, Collector, publication
from tests.engines.sqlite.helpers import locked, make, python, read_line, started


async def test_a_burst_longer_than_the_history_is_received_in_full(path: Path) -> None:
    short = History(size=2, ttl=60)
    async with started(path) as (engine, _), started(path) as (other, collector):
        await other.subscribe("chat", short)
        texts = [str(number) for number in range(2000)]
        await asyncio.gather(*(engine.publish(publication("chat", text), short) for text in texts))
        await collector.heard("chat", texts)
        assert len((await other.history("chat")).publications) == 2


async def test_publications_before_the_subscription_are_not_handed_over(path: Path) -> None:
    async with started(path) as (engine, collector):
        for number in range(20):
            before = asyncio.create_task(engine.publish(publication("chat", f"before {number}")))
            await asyncio.sleep(0)
            await engine.subscribe("chat")
            await engine.publish(publication("chat", f"after {number}"))
            await before
            await engine.unsubscribe("chat")
        assert [text.split()[0] for text in collector.texts("chat")] == ["after"] * len(
            collector.publications
        )


async def test_a_row_that_is_no_publication_is_skipped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with started(path) as (engine, collector):
        await engine.subscribe("chat")
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                "INSERT INTO hubbub_publications (namespace, channel, offset, time, expires, packed)"
                " VALUES ('hubbub', 'chat', 0, 0, 9e9, x'c1')"
            )
        await engine.publish(publication("chat", "1"))
        await collector.heard("chat", ["1"])
    assert "Expected a publication" in caplog.text


async def test_a_node_that_may_have_missed_pruned_publications_is_notified(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "KEEP", 0.0)
    async with started(path) as (engine, collector):
        await engine.subscribe("chat")
        await engine.publish(publication("chat", "1"))
        await collector.until(lambda: collector.reconnects > 0)


# Load


async def test_publications_are_handed_over_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_READ", 10)
    async with started(path) as (engine, collector), started(path) as (other, _):
        await engine.subscribe("chat", HISTORY)
        texts = [str(number) for number in range(1000)]
        await asyncio.gather(*(other.publish(publication("chat", text)) for text in texts))
        await collector.heard("chat", texts)


#: Prints the peak growth of its memory, in MiB, once it has received a publication in "chat".
LISTENER = """
import asyncio, resource, sys
from hubbub.engines import engine_for
from hubbub.testing.engine_contract import HISTORY, Collector

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def main(url):
    engine, collector = engine_for(url), Collector()
    await engine.start(collector)
    await engine.subscribe("chat", HISTORY)
    before = peak()
    print("ready", flush=True)
    await collector.until(lambda: collector.texts("chat"))
    print(peak() - before, flush=True)
    await engine.stop()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in other units elsewhere")
async def test_a_process_that_is_behind_does_not_load_channels_without_subscribers(path: Path) -> None:
    async with python(LISTENER, f"sqlite:///{path}", deadline=DEADLINE * 3) as process:
        assert await read_line(process) == "ready"
        process.send_signal(signal.SIGSTOP)
        async with started(path) as (engine, _):
            for number in range(80):
                await engine.publish(publication("other", f"{number:02}" * 800_000))
            await engine.publish(publication("chat", "the end"), HISTORY)
        process.send_signal(signal.SIGCONT)
        # They are 120 MiB.
        assert int(await read_line(process)) < 40
        assert await process.wait() == 0


class Pieces(Collector):
    """Records the sizes of the publications of each callback of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[list[int]] = []
        self._is_new = True

    def on_publication(self, publication: Publication) -> None:
        super().on_publication(publication)
        if self._is_new:
            self._is_new = False
            self.pieces.append([])
            # The next piece is handed over by a later callback, after this one.
            asyncio.get_running_loop().call_soon(self._end)
        self.pieces[-1].append(len(publication.data))

    def _end(self) -> None:
        self._is_new = True


async def test_the_publications_of_one_callback_are_bounded_in_bytes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_READ_BYTES", 10_000)
    sizes = [4000, 4000, 4000, 50_000, 1, 1, 9000]
    engine, collector = make(path), Pieces()
    await engine.start(collector)
    async with started(path) as (other, _):
        await engine.subscribe("chat")
        with locked(path):
            publishing = [
                asyncio.create_task(other.publish(publication("chat", "x" * size))) for size in sizes
            ]
            await asyncio.sleep(0)
        await asyncio.gather(*publishing)
        await collector.until(lambda: len(collector.publications) == len(sizes))
        assert [len(each.data) for each in collector.publications] == sizes
    await engine.stop()
    assert len(collector.pieces) > 1
    assert all(len(piece) == 1 or sum(piece) < 10_000 for piece in collector.pieces)
