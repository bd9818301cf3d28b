"""A publisher: publishing from threads, tasks and scripts, on real engines."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel

from hubbub import (
    EngineUnavailable,
    History,
    HubNotRunning,
    InvalidChannel,
    InvalidData,
    InvalidURL,
    Position,
    Publication,
    Publisher,
)
from hubbub import publisher as publisher_module
from hubbub.engines import Engine, engine_for
from hubbub.engines.base import Top
from hubbub.testing.engine_contract import Collector
from tests.clients import DEADLINE, eventually
from tests.engines.redis.server import RedisServer, redis_server
from tests.uvicorn_process import free_port


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of an engine without a server, for tests of what all engines have in common."""
    return f"sqlite:///{tmp_path / 'hub.db'}"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@asynccontextmanager
async def receiving(url: str, *channels: str, namespace: str = "hubbub") -> AsyncIterator[Collector]:
    """Collect the publications in ``channels``."""
    engine, collector = engine_for(url, namespace), Collector()
    await engine.start(collector)
    try:
        for channel in channels:
            await engine.subscribe(channel)
        yield collector
    finally:
        await engine.stop()


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hubbub-publisher"]


def kept(url: str, channel: str, namespace: str = "hubbub") -> list[str]:
    """The payloads in the history of ``channel``."""
    return [each.data.decode() for each in history_of(url, channel, namespace)]


def history_of(url: str, channel: str, namespace: str = "hubbub") -> list[Publication]:
    """The history of ``channel``, read on an event loop of its own."""

    async def read() -> list[Publication]:
        engine = engine_for(url, namespace)
        await engine.start(Collector())
        try:
            page = await engine.history(channel)
        finally:
            await engine.stop()
        return list(page.publications)

    return asyncio.run(read())


class Message(BaseModel):
    text: str


# Publishing


async def test_publications_are_received_in_other_processes(engine_url: str, namespace: str) -> None:
    def publish() -> list[Position]:
        with Publisher(engine_url, namespace=namespace) as publisher:
            return [
                publisher.publish("room:1", "hello"),
                publisher.publish("room:1", b"\xff"),
                publisher.publish("room:1", Message(text="hi")),
                publisher.publish("room:1", [1], exclude="ann"),
            ]

    async with receiving(engine_url, "room:1", namespace=namespace) as collector:
        assert await asyncio.to_thread(publish) == [Position(0, "")] * 4
        await collector.until(lambda: len(collector.publications) == 4)
    received = [(each.kind, each.data, each.exclude) for each in collector.publications]
    assert received == [
        ("text", b"hello", None),
        ("binary", b"\xff", None),
        ("json", b'{"text":"hi"}', None),
        ("json", b"[1]", "ann"),
    ]
    assert len({each.id for each in collector.publications}) == 4
    assert engine_threads() == []


def test_a_channel_that_has_a_history_keeps_it(engine_url: str, namespace: str) -> None:
    with Publisher(engine_url, namespace=namespace) as publisher:
        first = publisher.publish("orders", "1", history=History(size=2, ttl=60))
        assert [publisher.publish("orders", text) for text in "23"] == [
            Position(2, first.epoch),
            Position(3, first.epoch),
        ]
    assert kept(engine_url, "orders", namespace) == ["2", "3"]


def test_an_idempotency_key_publishes_once(engine_url: str, namespace: str) -> None:
    history = History()
    with Publisher(engine_url, namespace=namespace) as publisher:
        first = publisher.publish("orders", "paid", history=history, idempotency_key="7")
        assert publisher.publish("orders", "paid", history=history, idempotency_key="7") == first
        assert publisher.publish("orders", "sent", history=history, idempotency_key="8") != first


def test_wrong_arguments_are_refused_before_it_connects(url: str) -> None:
    with Publisher(url) as publisher:
        with pytest.raises(InvalidChannel):
            publisher.publish("", "hello")
        with pytest.raises(InvalidData):
            publisher.publish("chat", object())
        assert engine_threads() == []


@pytest.mark.parametrize("url", ["memory://", "MEMORY://"])
def test_memory_is_refused(url: str) -> None:
    with pytest.raises(InvalidURL, match=r"reaches other processes, but got \w+://, which stays within one"):
        Publisher(url)


# Threads


def test_many_threads_publish_over_one_connection(engine_url: str, namespace: str) -> None:
    threads, each = 16, 25
    with Publisher(engine_url, namespace=namespace) as publisher, ThreadPoolExecutor(threads) as executor:

        def publish(thread: int) -> list[int]:
            return [
                publisher.publish("chat", f"{thread}:{number}", history=History(size=1000)).offset
                for number in range(each)
            ]

        offsets = list(executor.map(publish, range(threads)))
        assert len(engine_threads()) == 1
    # The publications of each thread are in order, and none is lost or doubled.
    assert all(mine == sorted(mine) for mine in offsets)
    assert sorted(chain.from_iterable(offsets)) == list(range(1, threads * each + 1))
    assert sorted(kept(engine_url, "chat", namespace)) == sorted(
        f"{thread}:{number}" for thread in range(threads) for number in range(each)
    )


class Gate(Engine):
    """An engine that accepts nothing until it is opened, and counts the publications that wait."""

    across_processes = True

    def __init__(self) -> None:
        super().__init__("gate://")
        self.starts = self.stops = self.waiting = 0
        self.error: Exception | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.opened = asyncio.Event()

    async def start(self, sink: object) -> None:
        self.starts += 1
        self.loop = asyncio.get_running_loop()
        if self.error is not None:
            raise self.error

    async def stop(self) -> None:
        self.stops += 1

    async def publish(self, *args: object) -> Position:
        self.waiting += 1
        try:
            await self.opened.wait()
        finally:
            self.waiting -= 1
        return Position(7, "gate")

    def open(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.opened.set)

    async def subscribe(self, *args: object) -> Top:
        raise AssertionError

    async def unsubscribe(self, *args: object) -> None:
        raise AssertionError

    async def history(self, *args: object) -> None:  # type: ignore[override]
        raise AssertionError

    async def remove_history(self, *args: object) -> None:
        raise AssertionError

    async def update_presence(self, *args: object) -> bool:
        raise AssertionError

    async def expire_presence(self, *args: object) -> None:  # type: ignore[override]
        raise AssertionError

    async def presence(self, *args: object) -> None:  # type: ignore[override]
        raise AssertionError


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(publisher_module, "engine_for", lambda url, namespace: gate)
    return gate


def wait_until(condition: Callable[[], bool]) -> None:
    asyncio.run(eventually(condition))


def test_threads_do_not_wait_for_one_another(gate: Gate) -> None:
    with Publisher("gate://") as publisher, ThreadPoolExecutor(16) as executor:
        answers = [executor.submit(publisher.publish, "chat", str(number)) for number in range(16)]
        wait_until(lambda: gate.waiting == 16)
        assert gate.starts == 1
        gate.open()
        assert {answer.result(DEADLINE) for answer in answers} == {(7, "gate")}


def test_closing_waits_for_publications(gate: Gate) -> None:
    publisher = Publisher("gate://")
    with ThreadPoolExecutor(2) as executor:
        answer = executor.submit(publisher.publish, "chat", "last")
        wait_until(lambda: gate.waiting == 1)
        closing = executor.submit(publisher.close)
        wait_until(lambda: publisher._is_closed)
        assert not closing.done()
        gate.open()
        assert answer.result(DEADLINE) == (7, "gate")
        closing.result(DEADLINE)
    assert gate.stops == 1
    publisher.close()
    with pytest.raises(HubNotRunning, match="has been closed"):
        publisher.publish("chat", "too late")


def test_an_engine_that_does_not_answer_is_an_error_in_bounded_time(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "DEADLINE", 0.2)
    publisher = Publisher("gate://")
    with pytest.raises(EngineUnavailable, match=r"Gate did not answer within 0\.2 s"):
        publisher.publish("chat", "hello")
    # And the publication is cancelled.
    wait_until(lambda: gate.waiting == 0)
    publisher.close()


def test_a_start_that_failed_is_tried_again_with_the_next_message(gate: Gate) -> None:
    with Publisher("gate://") as publisher:
        gate.error = EngineUnavailable("The test refuses.")
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match="The test refuses"):
                publisher.publish("chat", "hello")
        gate.error = None
        gate.opened.set()
        assert publisher.publish("chat", "hello") == (7, "gate")
        assert gate.starts == 3
        assert len(engine_threads()) == 1
    assert gate.stops == 1


def test_a_publisher_that_is_garbage_collected_leaves_no_thread_behind(url: str) -> None:
    Publisher(url).publish("chat", "hello")
    gc.collect()
    wait_until(lambda: engine_threads() == [])


async def test_it_refuses_to_block_an_event_loop(url: str) -> None:
    with Publisher(url) as publisher:
        with pytest.raises(
            RuntimeError, match=r"Use 'await hub\.publish\(…\)', or 'await asyncio\.to_thread"
        ):
            publisher.publish("chat", "hello")
        assert await asyncio.to_thread(publisher.publish, "chat", "hello") == (0, "")


def test_def_endpoints_publish(url: str) -> None:
    app = FastAPI()
    publisher = Publisher(url)

    @app.post("/")
    def say() -> int:
        return publisher.publish("chat", "hello", history=History()).offset

    with TestClient(app) as client:
        assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
    publisher.close()


# Outages


@pytest.mark.parametrize("engine", ["redis://127.0.0.1:{port}", "postgresql://127.0.0.1:{port}/db"])
def test_a_server_that_is_not_there_is_an_error_without_the_password(engine: str) -> None:
    url = engine.format(port=free_port()).replace("//", "//app:s3cret@")
    with Publisher(url) as publisher, pytest.raises(EngineUnavailable) as caught:
        publisher.publish("chat", "hello")
    assert "127.0.0.1" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_it_reconnects_to_a_server_that_was_restarted(server: RedisServer) -> None:
    with Publisher(server.url) as publisher:
        publisher.publish("chat", "before", history=History())
        server.kill()
        with pytest.raises(EngineUnavailable):
            publisher.publish("chat", "lost")
        server.start()
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                publisher.publish("chat", "after", idempotency_key="after")
                break
            except EngineUnavailable:
                assert time.monotonic() < deadline
    assert kept(server.url, "chat") == ["before", "after"]


def test_a_server_that_does_not_answer_is_an_error_in_bounded_time(server: RedisServer) -> None:
    with Publisher(server.url) as publisher:
        publisher.publish("chat", "before")
        with server.frozen(), pytest.raises(EngineUnavailable):
            publisher.publish("chat", "lost")


# Processes


def run(source: str, url: str, *, timeout: float = DEADLINE) -> str:
    """Run a program with the URL as its argument until it ends, and return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source, url], capture_output=True, text=True, timeout=timeout
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


MODULE = """
import sys
from hubbub import History, Publisher
publisher = Publisher(sys.argv[1])
def say(text):
    publisher.publish("chat", text, history=History())
"""


def test_a_program_that_closes_nothing_ends(engine_url: str) -> None:
    run(MODULE + "say('hello')", engine_url)


FORK = """
import os
say("parent")
pids = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        for number in range(5):
            say(f"{child}:{number}")
        publisher.close()
        os._exit(0)
    pids.append(pid)
    say(f"parent:{child}")
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_parent_and_children_of_a_fork_publish(engine_url: str, namespace: str) -> None:
    source = MODULE.replace("sys.argv[1]", f"sys.argv[1], namespace={namespace!r}")
    run(source + FORK, engine_url)
    wanted = ["parent", *(f"{child}:{number}" for child in range(3) for number in range(5))]
    wanted += [f"parent:{child}" for child in range(3)]
    assert sorted(kept(engine_url, "chat", namespace)) == sorted(wanted)


FORK_UNUSED = """
import os
pids = []
for child in range(2):
    pid = os.fork()
    if pid == 0:
        say(str(child))
        os._exit(0)
    pids.append(pid)
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_publications_of_forked_processes_have_different_ids(url: str) -> None:
    run(MODULE + FORK_UNUSED, url)
    first, second = history_of(url, "chat")
    assert first.id[:12] != second.id[:12]


# Python 3.12 and newer warn of any fork while there are threads.
FORK_WHILE_PUBLISHING = """
import os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
ended = threading.Event()
def publish(thread):
    number = 0
    while not ended.is_set():
        say(f"{thread}:{number}")
        number += 1
threads = [threading.Thread(target=publish, args=(each,)) for each in range(4)]
for thread in threads:
    thread.start()
for child in range(10):
    pid = os.fork()
    if pid == 0:
        say(f"child:{child}")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
ended.set()
for thread in threads:
    thread.join()
"""


def test_a_fork_while_threads_publish_blocks_no_process(engine_url: str, namespace: str) -> None:
    source = MODULE.replace("sys.argv[1]", f"sys.argv[1], namespace={namespace!r}")
    source = source.replace("History()", "History(size=100_000)")
    run(source + FORK_WHILE_PUBLISHING, engine_url)
    texts = kept(engine_url, "chat", namespace)
    assert [text for text in texts if text.startswith("child")] == [f"child:{n}" for n in range(10)]
    # No publication of the threads is lost, doubled or out of order.
    for thread in range(4):
        mine = [text for text in texts if text.startswith(f"{thread}:")]
        assert mine == [f"{thread}:{number}" for number in range(len(mine))]


CTRL_C = """
import signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
say("before")
print("said", flush=True)
sys.stdin.readline()
def report():
    while not publisher._thread._outstanding:
        time.sleep(0.01)
    print("waiting", flush=True)
threading.Thread(target=report).start()
try:
    say("lost")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_interrupts_publishing(server: RedisServer) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MODULE + CTRL_C, server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "said\n"
        with server.frozen():
            program.stdin.write("go\n")
            program.stdin.flush()
            assert program.stdout.readline() == "waiting\n"
            program.send_signal(signal.SIGINT)
            assert program.stdout.readline() == "interrupted\n"
            # And then the program ends, although the server still does not answer.
            assert program.wait(DEADLINE) == 0
