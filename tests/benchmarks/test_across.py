"""Several workers and a store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import across, process
from benchmarks.load import Load, LoadFailed
from benchmarks.server import ServerFailed, serve
from tests.benchmarks.runs import ACROSS, BENCHMARK, HUBBUB, MANAGER, named
from tests.clients import DEADLINE

pytestmark = BENCHMARK


@pytest.mark.parametrize(
    "name",
    [
        *("hubbub-sqlite", "hubbub-redis-history", "hubbub-redis-uvicorn", "hubbub-postgres-unsynced"),
        *("broadcaster-redis", "litestar-redis", "channels-redis", "channels-redis-pubsub"),
        "python-socketio-redis",
    ],
)
def test_a_fan_out_across_workers(name: str) -> None:
    measured = across.fan_out(named(name), ACROSS)
    assert measured["value"] > 0
    assert 0 < measured["p50_ms"] <= measured["p99_ms"]
    # Of every message, each client is to get one.
    assert measured["expected"] % ACROSS.clients == 0
    assert measured["lost"] == 0
    assert measured["listener_cpu"] > 0


def test_a_latency_across_workers_is_that_of_either_worker() -> None:
    measured = across.latency(named("hubbub-redis"), replace(ACROSS, clients=2, rate=100, outstanding=1))
    assert (measured["lost"], measured["misordered"]) == (0, 0)
    assert 0 < measured["value"] <= measured["p99_ms"] <= measured["max_ms"]
    assert 0 < measured["own_p50_ms"] <= measured["own_p99_ms"]


@pytest.mark.parametrize(
    "name",
    [
        *("hubbub-sqlite-history", "hubbub-redis", "hubbub-postgres-history"),
        # Not channels_redis with its default layer, which drops what its listener has not taken in time.
        *("broadcaster-redis", "litestar-redis", "channels-redis-pubsub", "python-socketio-redis"),
    ],
)
def test_a_worker_receives_what_another_process_publishes(name: str) -> None:
    measured = across.publishes(named(name), replace(ACROSS, patience=1.0))
    assert measured["value"] > 0
    assert measured["expected"] > 0
    assert measured["lost"] == 0
    assert 0 < measured["p50_ms"] <= measured["p99_ms"]


def test_the_error_about_a_failed_publisher_has_its_output() -> None:
    peer = replace(HUBBUB, publisher="no_such_module")
    with pytest.raises(
        ServerFailed, match="The publisher of Hubbub, hubbub run failed, with exit code 1"
    ) as caught:
        across.publish(peer, ACROSS, "", process.cores()[0])
    assert "No module named 'no_such_module'" in caught.value.__notes__[0]


def test_the_error_about_a_failed_request_has_its_path() -> None:
    server, _ = process.cores()
    with (
        serve(MANAGER, server) as running,
        pytest.raises(ServerFailed, match="The request for /fill failed: 404 Not Found"),
    ):
        across.ask(running, "fill", count=1)


@pytest.mark.parametrize("name", ["hubbub-memory-history", "hubbub-sqlite-history"])
def test_clients_that_resume_share_the_reads_of_the_history(name: str) -> None:
    load = Load(mode="resume", path="/resume", clients=50, messages=20, warmup=0, deadline=DEADLINE)
    measured = across.resume(named(name), load)
    assert measured["deliveries"] == 1000
    # Two pages, for the first client. A few more if a client connects at the end of a read.
    assert 1 <= measured["reads"] <= 5
    assert measured["value"] > 0
    assert measured["joining"] > 0


def test_missing_messages_of_a_resume_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The message before the one that is to be the first counts, too.
    monkeypatch.setattr(across, "ask", lambda server, path, **_: {"offset": 9} if path == "fill" else 0)
    load = Load(mode="resume", path="/ws", clients=2, messages=1, warmup=0, patience=0.2, deadline=DEADLINE)
    with pytest.raises(LoadFailed, match="2 of 2 messages are missing"):
        across.resume(named("hubbub-memory-history"), load)
