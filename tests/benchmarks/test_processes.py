"""Processes that benchmarks start end with them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from benchmarks import process
from benchmarks.server import serve
from tests.benchmarks.runs import ON_LINUX, children, ended, group, named
from tests.clients import DEADLINE
from tests.uvicorn_process import ROOT, is_running

pytestmark = ON_LINUX

#: Starts granian, prints its process and waits.
GRANIAN = """
from time import sleep
from benchmarks.peers import PEERS
from benchmarks.process import cores
from benchmarks.server import serve

peer = next(peer for peer in PEERS if peer.name == "hubbub-granian")
with serve(peer, cores()[0]) as server:
    print(server.pid, flush=True)
    sleep(600)
"""


def test_the_workers_of_a_server_end_with_the_block() -> None:
    with serve(named("hubbub-granian"), process.cores()[0]) as server:
        assert len(group(server.pid)) > 2
    ended(server.pid)


def test_the_workers_of_a_server_end_with_a_killed_run() -> None:
    named("hubbub-granian")
    with subprocess.Popen(
        [sys.executable, "-c", GRANIAN], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        leader = int(run.stdout.readline())
        assert len(group(leader)) > 2
        run.kill()
    ended(leader)


@pytest.mark.benchmark
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_a_signal_ends_leaves_no_process_behind(sig: signal.Signals) -> None:
    command = [sys.executable, "-m", "benchmarks", "--peers", "reference", "--scenarios", "echo"]
    with subprocess.Popen(
        [*command, "--seconds", "60"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # A shell lets commands in its background ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        assert run.stdout
        deadline = time.monotonic() + DEADLINE
        while len(started := children(run.pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(sig)
        printed = run.stdout.read()
    assert run.returncode == (0 if sig is signal.SIGINT else -sig)
    assert ("Stopped; these are the results so far." in printed) is (sig is signal.SIGINT)
    while any(is_running(pid) for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)
