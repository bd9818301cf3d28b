"""Several processes that share a file, and namespaces that do."""

from __future__ import annotations

from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hubbub.engines.base import PresenceChange
from hubbub.testing.engine_contract import HISTORY, publication
from tests.engines.sqlite.helpers import python, read_line, rows, started

#: A process that publishes ``count`` times to "chat" after it has read a line, and prints the publications
#: that it has received after the one with "the end".
PROCESS = """
import asyncio, sys
from hubbub.core.publication import Publication
from hubbub.engines import engine_for
from hubbub.testing.engine_contract import HISTORY, Collector, publication

async def main(url, name, count):
    engine, collector = engine_for(url), Collector()
    await engine.start(collector)
    position, _ = await engine.subscribe("chat", HISTORY)
    print("ready", *position, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for start in range(0, count, 50):
        texts = [f"{name}:{number}" for number in range(start, min(start + 50, count))]
        await asyncio.gather(*(engine.publish(publication("chat", text), HISTORY) for text in texts))
    print("published", flush=True)
    await collector.until(lambda: "the end" in collector.texts("chat")[-1:])
    await engine.stop()
    print(*(f"{each.offset}={each.data.decode()}" for each in collector.publications), sep=";", flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@asynccontextmanager
async def process(path: Path, name: str, count: int) -> AsyncIterator[Process]:
    async with python(PROCESS, f"sqlite:///{path}", name, str(count)) as running:
        yield running


def go(running: Process) -> None:
    assert running.stdin is not None
    running.stdin.write(b"\n")


async def test_all_processes_receive_all_publications_in_one_order(path: Path) -> None:
    async with process(path, "a", 200) as a, process(path, "b", 200) as b, process(path, "c", 200) as c:
        processes = (a, b, c)
        for each in processes:
            assert (await read_line(each)).startswith("ready 0 ")
        for each in processes:
            go(each)
        for each in processes:
            assert await read_line(each) == "published"
        async with started(path) as (engine, _):
            assert (await engine.publish(publication("chat", "the end"))).offset == 601
        received = [(await read_line(each)).split(";") for each in processes]
        assert received[0] == received[1] == received[2]
        assert [each.partition("=")[0] for each in received[0]] == [str(offset) for offset in range(1, 602)]
        texts = [each.partition("=")[2] for each in received[0]]
        for name in "abc":
            assert [text for text in texts if text.startswith(name)] == [f"{name}:{n}" for n in range(200)]


async def test_a_process_that_is_killed_leaves_no_half_of_a_transaction(path: Path) -> None:
    async with started(path) as (engine, collector), process(path, "a", 1_000_000) as victim:
        await engine.subscribe("chat", HISTORY)
        await read_line(victim)
        go(victim)
        await collector.until(lambda: len(collector.publications) > 200)
        victim.kill()
        await victim.wait()
        last = await engine.publish(publication("chat", "the end"))
        await collector.until(lambda: collector.publications[-1].position == last)
        received = [each.offset for each in collector.publications]
        assert received == list(range(1, last.offset + 1))
        page = await engine.history("chat")
        assert [each.offset for each in page.publications] == received[-HISTORY.size :]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "SELECT top FROM hubbub_streams") == [(last.offset,)]


async def test_positions_and_history_outlive_the_processes(path: Path) -> None:
    async with started(path) as (engine, _):
        first = await engine.publish(publication("chat", "1"), HISTORY, "key")
    async with started(path) as (engine, collector):
        assert (await engine.subscribe("chat", HISTORY)).position == first
        assert await engine.publish(publication("chat", "1"), HISTORY, "key") == first
        assert await engine.publish(publication("chat", "2"), HISTORY) == (2, first.epoch)
        await collector.heard("chat", ["2"])
        page = await engine.history("chat")
        assert [each.data for each in page.publications] == [b"1", b"2"]


async def test_namespaces_share_a_file_and_nothing_else(path: Path) -> None:
    async with started(path, "a") as (a, collector_a), started(path, "b") as (b, collector_b):
        for engine in (a, b):
            await engine.subscribe("chat", HISTORY)
        await a.publish(publication("chat", "to a"), None, "key")
        await b.publish(publication("chat", "to b"), None, "key")
        await collector_a.heard("chat", ["to a"])
        await collector_b.heard("chat", ["to b"])
        await a.remove_history("chat")
        assert [each.data for each in (await b.history("chat")).publications] == [b"to b"]


async def test_namespaces_have_leases_and_presence_of_their_own(path: Path) -> None:
    async with started(path, "a") as (a, _), started(path, "b") as (b, _):
        entered = [PresenceChange("chat", "1", b"in a")]
        assert await a.update_presence("lease", 0, entered, begin=True)
        assert not await b.update_presence("lease", 60)
        assert await b.presence("chat") == {}
        assert list(await b.expire_presence(-1)) == []
        assert await a.presence("chat") == {"1": b"in a"}
        assert list(await a.expire_presence(-1)) == [PresenceChange("chat", "1", None)]
