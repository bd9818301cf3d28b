"""The load generator measures what it should and notices the mistakes of servers."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import build as building
from benchmarks.build import BuildFailed, build
from benchmarks.load import Load, LoadFailed
from benchmarks.measures import fan_out, memory, stalled
from benchmarks.peers import Peer
from benchmarks.server import ServerFailed
from tests.benchmarks.runs import BENCHMARK, BRIEF, HERE, HUBBUB, MANAGER, REFERENCE, SMALL, misbehaving, run

pytestmark = BENCHMARK


@pytest.fixture(params=HERE, ids=lambda peer: peer.name)
def peer(request: pytest.FixtureRequest) -> Peer:
    peer: Peer = request.param
    return peer


@pytest.mark.parametrize("program", building.PROGRAMS)
def test_the_programs_compile_without_warnings(program: str, tmp_path: Path) -> None:
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow"]
    subprocess.run([*command, "-o", tmp_path / program, building.HERE / f"{program}.c"], check=True)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "BUILD", tmp_path)
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(BuildFailed, match="there is no no-such-compiler"):
        build("load")


def test_fan_out(peer: Peer) -> None:
    result = run(peer, replace(SMALL, outstanding=8))
    assert (result.misordered, result.missing, result.lost_clients) == (0, 0, 0)
    assert result.deliveries > result.messages > 0
    assert 0 < result.p50_us <= result.p99_us <= result.max_us
    assert min(result.load_cpu, result.server_cpu) > 0
    assert 0 <= result.load_idle <= 1


def test_echo(peer: Peer) -> None:
    result = run(peer, replace(SMALL, mode="echo", path="/echo"))
    assert (result.misordered, result.missing, result.lost_clients) == (0, 0, 0)
    assert result.deliveries > 0


def test_many_channels() -> None:
    result = run(HUBBUB, replace(SMALL, path="/many/{}", channels=10))
    assert (result.misordered, result.missing) == (0, 0)
    assert result.messages > 0


def test_a_rate_does_not_wait_for_the_messages_before() -> None:
    result = run(REFERENCE, replace(SMALL, rate=100))
    assert (result.misordered, result.missing) == (0, 0)
    assert 0 < result.deliveries <= 20 * 100


def test_a_message_that_does_not_fit_into_the_socket_buffer_is_sent_later() -> None:
    result = run(MANAGER, replace(SMALL, clients=3, outstanding=32, size=200_000))
    assert (result.misordered, result.missing, result.lost_clients) == (0, 0, 0)
    assert result.messages > 0


def test_memory_counts_the_clients() -> None:
    assert memory(MANAGER, Load(mode="idle", clients=150))["value"] > 0


def test_a_client_that_does_not_read_does_not_affect_the_others() -> None:
    load = Load(clients=4, stalled=1, messages=3000, size=4096, outstanding=32, warmup=0)
    measured = stalled(HUBBUB, load)
    assert (measured["value"], measured["lost_clients"], measured["misordered"]) == (3000, 0, 0)
    assert measured["disconnected"] == 1


@pytest.mark.parametrize(
    ("fault", "misordered", "missing"),
    [("drops", 1, 1), ("doubles", 1, 0), ("swaps", 2, 0), ("invents", 1, 0)],
)
def test_a_server_that_makes_a_mistake_is_noticed(fault: str, misordered: int, missing: int) -> None:
    result = run(misbehaving(fault), replace(BRIEF, outstanding=8))
    assert (result.misordered, result.missing) == (misordered, missing)


def test_a_lost_message_does_not_stop_the_next_ones() -> None:
    result = run(misbehaving("drops"), replace(BRIEF, outstanding=2, messages=20))
    assert (result.missing, result.messages, result.expected) == (1, 19, 100)


def test_a_lost_last_message_is_noticed() -> None:
    result = run(misbehaving("drops"), BRIEF)
    assert (result.misordered, result.missing, result.messages) == (0, 1, 5)


def test_a_closed_connection_ends_the_run() -> None:
    load = replace(SMALL, seconds=60)
    assert run(misbehaving("closes"), load).lost_clients == 1
    with pytest.raises(LoadFailed, match="The server closed the connection of one of 20 clients"):
        fan_out(misbehaving("closes"), load)


def test_the_error_about_a_server_that_refuses_clients_has_its_output() -> None:
    with pytest.raises(LoadFailed) as caught:
        run(misbehaving("refuses"), SMALL)
    assert re.fullmatch(
        r"expected client \d+ to become a member, but the server answered HTTP/1.1 403 Forbidden",
        str(caught.value),
    )
    assert caught.value.__notes__[0].startswith("It refuses.")


def test_a_server_that_accepts_no_client_fails_the_run() -> None:
    peer = replace(misbehaving("is quiet"), ready="welcome")
    with pytest.raises(LoadFailed, match=r"^expected 20 members, but after 0\.5 s there are 0"):
        run(peer, replace(SMALL, deadline=0.5))


def test_the_error_about_a_server_that_does_not_start_has_its_output() -> None:
    peer = replace(REFERENCE, title="Broken", command=("{python}", "-c", "print('Oh'); exit(3)"))
    with pytest.raises(ServerFailed, match="Broken ended before it listened, with exit code 3") as caught:
        run(peer, SMALL)
    assert caught.value.__notes__ == ["Oh"]


def test_fragments_are_not_counted() -> None:
    with pytest.raises(LoadFailed, match="expected whole messages, but client 0 got a fragment"):
        run(misbehaving("fragments"), replace(SMALL, clients=1))


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (Load(clients=0), "expected more --clients than --stalled"),
        (Load(clients=2, stalled=2), "expected more --clients than --stalled"),
        (Load(clients=2, stalled=1, mode="echo"), "with --mode=fanout, but got echo"),
        (Load(mode="echo", outstanding=2), "expected --outstanding=1"),
        (Load(outstanding=100_000), "expected --outstanding from 1 to 65536, but got 100000"),
        (Load(messages=5, warmup=1), "expected --warmup=0 with --messages"),
        (Load(mode="fun"), "expected --mode to be fanout, echo, idle or resume, but got fun"),
        (Load(mode="resume", warmup=0), "expected --messages from 1 to 65536 with --mode=resume, but got 0"),
        (Load(size=2_000_000), "expected a --size of less than 512 KiB"),
        (Load(clients=-1), "expected --clients to be a whole number from 0, but got '-1'"),
    ],
)
def test_loads_that_contradict_themselves_are_refused(load: Load, message: str) -> None:
    with pytest.raises(LoadFailed, match=re.escape(message)):
        run(REFERENCE, load)
