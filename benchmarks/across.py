"""Measurements of several processes and a store, which is new for each measurement.

The store and the servers share one CPU, so that the result is the cost of a message for all of them together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlencode

from benchmarks.load import Load, LoadFailed, Result, connect
from benchmarks.measures import Measured, complete
from benchmarks.peers import HERE, Peer
from benchmarks.process import cores, start
from benchmarks.server import Server, ServerFailed, serve
from benchmarks.stores import store

#: Seconds for a request, or for a publisher to end once its time is over.
TIMEOUT = 60.0


def latency(peer: Peer, load: Load) -> Measured:
    """Return the milliseconds from publishing at one worker to the arrival at a client of the other."""
    result = _across(peer, load)
    return {
        "value": result.p50_us / 1000,
        "p99_ms": result.p99_us / 1000,
        "max_ms": result.max_us / 1000,
        "own_p50_ms": result.own_p50_us / 1000,
        "own_p99_ms": result.own_p99_us / 1000,
        "outstanding": result.outstanding,
        **_arrivals(result),
    }


def fan_out(peer: Peer, load: Load) -> Measured:
    """Return the deliveries per second. One client publishes at one worker, all others are at the other."""
    result = _across(peer, load)
    return {
        "value": result.per_second,
        "p50_ms": result.p50_us / 1000,
        "p99_ms": result.p99_us / 1000,
        **_arrivals(result),
        "listener_cpu": result.server_cpu,
        "load_cpu": result.load_cpu,
        "load_idle": result.load_idle,
    }


def publishes(peer: Peer, load: Load) -> Measured:
    """Return the publications per second of a process without clients, ``load.outstanding`` at a time.

    On the other CPU, a client of a worker receives them.
    """
    server_core, load_core = cores()
    idle = replace(load, mode="idle", clients=1, outstanding=1)
    with (
        store(peer.store, server_core) as url,
        serve(peer, load_core, url) as server,
        connect(peer, server, idle, load_core) as clients,
    ):
        time.sleep(load.settle)
        published = publish(peer, load, url, server_core)
        arrived = clients.leave()
    return {
        "value": published["per_second"],
        "p50_ms": published["p50_ms"],
        "p99_ms": published["p99_ms"],
        "lost": published["published"] - arrived,
        "expected": published["published"],
    }


def resume(peer: Peer, load: Load) -> Measured:
    """Return the seconds until all clients, which resume at once, have the messages that they missed."""
    server_core, load_core = cores()
    with store(peer.store, server_core) as url:
        # This worker has nothing of the channel in memory.
        with serve(peer, server_core, url) as server:
            missed = ask(server, "fill", count=load.messages, size=load.size)
            since = f"{load.path}?{urlencode(missed)}"
            before = ask(server, "reads")
            with connect(peer, server, replace(load, path=since), load_core) as clients:
                result = complete(clients.result(), load)
            reads = ask(server, "reads") - before
        idle = replace(load, mode="idle", messages=0)
        with serve(peer, server_core, url) as server, connect(peer, server, idle, load_core) as clients:
            joining = clients.connected.seconds
            clients.leave()
    if result.missing or result.misordered:
        raise LoadFailed(
            f"{result.missing} of {result.expected} messages are missing, and {result.misordered} "
            "were out of order."
        )
    return {"value": result.seconds, "joining": joining, "deliveries": result.deliveries, "reads": reads}


@contextmanager
def _workers(peer: Peer, core: int) -> Iterator[tuple[Server, Server]]:
    with (
        store(peer.store, core) as url,
        serve(peer, core, url) as publisher,
        serve(peer, core, url) as listener,
    ):
        yield publisher, listener


def _across(peer: Peer, load: Load) -> Result:
    server_core, load_core = cores()
    with (
        _workers(peer, server_core) as (publisher, listener),
        connect(peer, listener, load, load_core, publisher) as clients,
    ):
        return complete(clients.result(), load)


def _arrivals(result: Result) -> Measured:
    return {"lost": result.missing, "expected": result.expected, "misordered": result.misordered}


def publish(peer: Peer, load: Load, url: str, core: int) -> dict[str, float]:
    """Run ``publishing.py`` for ``peer`` on CPU ``core`` with the store at ``url``, and return its results.

    :raises ServerFailed: it fails or does not end.
    """
    numbers = (load.outstanding, load.warmup, load.seconds, load.size)
    command = [sys.executable, "publishing.py", peer.publisher, *map(str, numbers)]
    environment = os.environ | peer.settings(url)
    pipe = subprocess.PIPE
    with start(command, core, cwd=HERE, env=environment, stdout=pipe, stderr=pipe) as process:
        try:
            printed, said = process.communicate(timeout=load.warmup + load.seconds + TIMEOUT)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"The publisher of {peer.title} did not end in time.") from None
    if process.returncode:
        failed = ServerFailed(f"The publisher of {peer.title} failed, with exit code {process.returncode}.")
        failed.add_note(said.strip())
        raise failed
    published: dict[str, float] = json.loads(printed)
    return published


def ask(server: Server, path: str, **parameters: int) -> Any:
    """Return the JSON of a GET request, or with parameters of a POST request.

    :raises ServerFailed: the request fails.
    """
    # Not urlopen(), which asks a proxy if there is one.
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)) as connection:
        try:
            connection.request("POST" if parameters else "GET", f"/{path}?{urlencode(parameters)}")
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as exc:
            raise ServerFailed(f"The request for /{path} failed: {exc!r}") from exc
    if answer.status != HTTPStatus.OK:
        raise ServerFailed(f"The request for /{path} failed: {answer.status} {answer.reason}")
    return json.loads(body)
