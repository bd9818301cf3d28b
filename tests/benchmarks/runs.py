"""Servers and loads for the tests of the benchmarks. No test asks how fast a server is."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks import process
from benchmarks.load import Load, Result, connect
from benchmarks.peers import PEERS, Peer
from benchmarks.report import NotInstalled, versions
from benchmarks.scenarios import SCENARIOS
from benchmarks.server import serve
from tests.clients import DEADLINE
from tests.uvicorn_process import ROOT, is_running

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
#: The marks of tests that compile and run the load generator.
BENCHMARK = [
    pytest.mark.benchmark,
    ON_LINUX,
    pytest.mark.skipif(shutil.which("cc") is None and "CI" not in os.environ, reason="needs a C compiler"),
    pytest.mark.skipif(os.cpu_count() == 1, reason="needs two CPUs"),
]

#: The peers whose packages are in requirements/dev.txt.
HERE = [peer for peer in PEERS if peer.name in ("reference", "hubbub", "manager")]
REFERENCE, HUBBUB, MANAGER = HERE
ECHO = next(scenario for scenario in SCENARIOS if scenario.name == "echo")

SMALL = Load(clients=20, seconds=0.3, warmup=0.1, settle=0.1, deadline=DEADLINE)
BRIEF = Load(clients=5, seconds=0.2, warmup=0, settle=0, patience=0.3, deadline=DEADLINE)
ACROSS = Load(clients=5, seconds=0.3, warmup=0.1, settle=0.5, outstanding=8, deadline=DEADLINE)


def named(name: str) -> Peer:
    """Return the peer of that name; skip the test if it is not installed."""
    peer = next(peer for peer in PEERS if peer.name == name)
    try:
        versions(peer)
    except NotInstalled as exc:
        pytest.skip(f"{exc}")
    return peer


def misbehaving(fault: str) -> Peer:
    """Return a server that makes the mistake of that name."""
    app = ROOT / "tests" / "apps" / "misbehaving.py"
    command = ("{python}", str(app), "{port}", fault)
    return Peer(name=fault, title=fault, command=command, path="/", packages=())


def run(peer: Peer, load: Load) -> Result:
    """Run the load on a new server."""
    server_core, load_core = process.cores()
    with serve(peer, server_core) as server, connect(peer, server, load, load_core) as clients:
        return clients.result()


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` has started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def group(leader: int) -> list[int]:
    """Return the running processes of a process group."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    found = []
    for pid in pids:
        with suppress(ProcessLookupError):
            if os.getpgid(pid) == leader and is_running(pid):
                found.append(pid)
    return found


def ended(leader: int) -> None:
    """Wait until no process of the group runs."""
    deadline = time.monotonic() + DEADLINE
    while group(leader):
        assert time.monotonic() < deadline
        time.sleep(0.05)
