"""Measurements of one process: one load on one new server each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeAlias

from benchmarks.load import Clients, Load, LoadFailed, Result, connect
from benchmarks.peers import Peer
from benchmarks.process import cores
from benchmarks.server import Server, serve
from benchmarks.stores import store

MIB = 1 << 20
WARM_UP_CLIENTS = 100

#: The numbers of one run by name. ``value`` is in tables and charts.
Measured: TypeAlias = dict[str, float]


@contextmanager
def _connected(peer: Peer, load: Load) -> Iterator[tuple[Server, Clients]]:
    server_core, load_core = cores()
    with (
        store(peer.store, server_core) as url,
        serve(peer, server_core, url) as server,
        connect(peer, server, load, load_core) as clients,
    ):
        yield server, clients


def fan_out(peer: Peer, load: Load) -> Measured:
    """Return the deliveries per second."""
    with _connected(peer, load) as (_, clients):
        result = complete(clients.result(), load)
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
    """Return the milliseconds from publishing to the arrival at a client, at a low rate."""
    with _connected(peer, load) as (_, clients):
        result = complete(clients.result(), load)
    return {
        "value": result.p50_us / 1000,
        "p99_ms": result.p99_us / 1000,
        "max_ms": result.max_us / 1000,
        "not_in_order": result.misordered + result.missing,
        "outstanding": result.outstanding,
    }


def connections(peer: Peer, load: Load) -> Measured:
    """Return the connections per second, with 64 handshakes at a time."""
    with _connected(peer, load) as (_, clients):
        clients.leave()
        return {"value": clients.connected.clients / clients.connected.seconds}


def memory(peer: Peer, load: Load) -> Measured:
    """Return the KiB for each idle connection.

    A first load warms the server up, so that only connections count.
    """
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
    """Return the messages that all other clients have received while one does not read."""
    with _connected(peer, load) as (server, clients):
        before = server.memory()
        server.reset_peak_memory()
        result = clients.result()
        grown = server.peak_memory() - before
    return {
        "value": result.messages,
        "seconds": result.seconds,
        "grown_mib": grown / MIB,
        "disconnected": result.stalled_ended,
        "misordered": result.misordered,
        "lost_clients": result.lost_clients,
    }


def complete(result: Result, load: Load) -> Result:
    """Return ``result``.

    :raises LoadFailed: the server has closed a connection.
    """
    if result.lost_clients:
        raise LoadFailed(f"The server closed the connection of one of {load.clients} clients.")
    return result


def _settled(server: Server) -> int:
    """Return the server's memory when it has stopped changing, or after 5 s."""
    now = server.memory()
    for _ in range(10):
        time.sleep(0.5)
        before, now = now, server.memory()
        if now == before:
            break
    return now
