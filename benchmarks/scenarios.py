"""What is measured: each scenario is one load on one freshly started server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from benchmarks.load import Clients, Load, LoadFailed, Result, connect
from benchmarks.peers import Peer
from benchmarks.process import cores
from benchmarks.server import Server, serve

MIB = 1 << 20
WARM_UP_CLIENTS = 100

#: By name: numbers of one run. ``value`` is the one that charts show.
Measured = dict[str, float]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to measure.

    :param name: for the command line and file names.
    :param title: for tables and charts.
    :param unit: of the value.
    :param load: what the clients do.
    :param measure: runs it once.
    :param less_is_better: for a time or for memory.
    :param needs_more: needs the routes that only some peers have.
    :param rounds: at the most; some take long.
    :param quick_rounds: the same for the short run; 0 if it is not part of that.
    :param lasts: times as long as others.
    """

    name: str
    title: str
    unit: str
    load: Load
    measure: Callable[[Peer, Load], Measured]
    less_is_better: bool = False
    needs_more: bool = False
    rounds: int = 100
    quick_rounds: int = 0
    lasts: int = 1

    def run(self, peer: Peer, seconds: float) -> Measured:
        """One run on a server of its own.

        :param seconds: how long to measure, where the scenario lasts as long as one likes.
        :raises ServerFailed: it did not start.
        :raises LoadFailed: it refused or lost clients.
        """
        return self.measure(peer, replace(self.load, seconds=self.lasts * seconds))


@contextmanager
def _connected(peer: Peer, load: Load) -> Iterator[tuple[Server, Clients]]:
    server_core, load_core = cores()
    with serve(peer, server_core) as server, connect(peer, server, load, load_core) as clients:
        yield server, clients


def fan_out(peer: Peer, load: Load) -> Measured:
    """Deliveries per second."""
    with _connected(peer, load) as (_, clients):
        result = _complete(clients.result(), load)
    return {
        "value": result.per_second,
        "p50_ms": result.p50_us / 1000,
        "p99_ms": result.p99_us / 1000,
        "not_in_order": result.misordered + result.missing,
        "server_cpu": result.server_cpu,
        "load_cpu": result.load_cpu,
        "load_idle": result.load_idle,
    }


def latency(peer: Peer, load: Load) -> Measured:
    """Milliseconds from publishing to the arrival at a client, at a rate that every server sustains."""
    with _connected(peer, load) as (_, clients):
        result = _complete(clients.result(), load)
    return {
        "value": result.p50_us / 1000,
        "p99_ms": result.p99_us / 1000,
        "max_ms": result.max_us / 1000,
        "not_in_order": result.misordered + result.missing,
        "outstanding": result.outstanding,
    }


def connections(peer: Peer, load: Load) -> Measured:
    """Connections per second, 64 handshakes under way at a time."""
    with _connected(peer, load) as (_, clients):
        clients.leave()
        return {"value": clients.connected.clients / clients.connected.seconds}


def memory(peer: Peer, load: Load) -> Measured:
    """KiB for each idle connection. A first load warms the server up, so that only connections count."""
    server_core, load_core = cores()
    with serve(peer, server_core) as server:
        with connect(peer, server, replace(load, clients=WARM_UP_CLIENTS), load_core) as clients:
            before = _settled(server)
            clients.leave()
        with connect(peer, server, load, load_core) as clients:
            grown = _settled(server) - before
            clients.leave()
    return {"value": grown / 1024 / (load.clients - WARM_UP_CLIENTS)}


def stalled(peer: Peer, load: Load) -> Measured:
    """Messages that everyone has who reads, while one client does not read at all."""
    with _connected(peer, load) as (server, clients):
        before = server.memory()
        server.reset_peak_memory()
        result = clients.result()
        grown = server.peak_memory() - before
    return {
        "value": result.messages,
        "seconds": result.seconds,
        "grown_mib": grown / MIB,
        "let_go": result.stalled_ended,
        "misordered": result.misordered,
        "lost_clients": result.lost_clients,
    }


def _complete(result: Result, load: Load) -> Result:
    if result.lost_clients:
        raise LoadFailed(f"Expected {load.clients} clients to stay connected, but the server lost one.")
    return result


def _settled(server: Server) -> int:
    """The server's memory once it has stopped changing, for at most 5 s."""
    now = server.memory()
    for _ in range(10):
        time.sleep(0.5)
        before, now = now, server.memory()
        if now == before:
            break
    return now


def _fan_outs() -> Iterator[Scenario]:
    for clients, outstanding, size in (
        (1000, 1, 128),
        (1000, 8, 128),
        (1000, 32, 128),
        (1000, 8, 4096),
        (10, 8, 128),
        (10_000, 8, 128),
    ):
        is_large = clients == 10_000
        yield Scenario(
            name=f"fanout-{clients}-{outstanding}-{size}",
            title=f"Fan-out: {clients:,} clients, {outstanding} outstanding, {size} bytes",
            unit="deliveries/s",
            load=Load(clients=clients, outstanding=outstanding, size=size, settle=2.0 if is_large else 0.3),
            measure=fan_out,
            rounds=2 if is_large else 100,
            quick_rounds=2 if (clients, size) == (1000, 128) and outstanding < 32 else 0,
        )


SCENARIOS = (
    *_fan_outs(),
    Scenario(
        name="latency",
        title="Latency: 1,000 clients, 2 messages a second",
        unit="ms (median)",
        load=Load(rate=2.0, settle=1.0),
        measure=latency,
        less_is_better=True,
        rounds=2,
        lasts=3,
    ),
    Scenario(
        name="connect",
        title="Connecting: 2,000 clients",
        unit="connections/s",
        load=Load(mode="idle", clients=2000),
        measure=connections,
        rounds=3,
        quick_rounds=1,
    ),
    Scenario(
        name="memory",
        title="Memory: 2,000 idle clients in one channel",
        unit="KiB per connection",
        load=Load(mode="idle", clients=2000),
        measure=memory,
        less_is_better=True,
        rounds=2,
        quick_rounds=1,
    ),
    Scenario(
        name="stalled",
        title="One of 201 clients does not read: 3,000 messages of 4 KB",
        unit="messages that everyone else has",
        load=Load(clients=201, stalled=1, messages=3000, size=4096, outstanding=8, warmup=0),
        measure=stalled,
        rounds=1,
        quick_rounds=1,
    ),
    Scenario(
        name="many",
        title="Many channels: 9,900 with two clients each",
        unit="deliveries/s",
        load=Load(path="/many/{}", clients=19_800, channels=9_900, settle=3.0),
        measure=fan_out,
        needs_more=True,
        rounds=1,
    ),
    Scenario(
        name="echo",
        title="Echo: 50 clients, each sends and waits",
        unit="messages/s",
        load=Load(mode="echo", path="/echo", clients=50),
        measure=fan_out,
        needs_more=True,
        quick_rounds=2,
    ),
)
