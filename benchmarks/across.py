"""What is measured of several processes around a store, which is new for each measurement.

The store and the servers share one CPU, as one server does in the other measurements: what counts is what a
message costs them all together.
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
    """Milliseconds from publishing at one worker to the arrival at a client of the other."""
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
    """Deliveries per second, where one client publishes at one worker and all others are at the other."""
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
    """Publications per second of a process without clients, ``load.outstanding`` under way at a time. On the
    other CPU, a worker and a client of it listen."""
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
    """Seconds until all clients, which come back at once, have what they have missed."""
    server_core, load_core = cores()
    with store(peer.store, server_core) as url:
        # To a worker that has nothing of the channel in memory.
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
            f"Expected {result.expected} messages in order, but {result.missing} of them are missing and "
            f"{result.misordered} were not the next one."
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
    """What ``publishing.py`` says when it has published for ``peer`` on CPU ``core`` to the store at ``url``.

    :raises ServerFailed: it could not.
    """
    numbers = (load.outstanding, load.warmup, load.seconds, load.size)
    command = [sys.executable, "publishing.py", peer.publisher, *map(str, numbers)]
    environment = os.environ | peer.settings(url)
    pipe = subprocess.PIPE
    with start(command, core, cwd=HERE, env=environment, stdout=pipe, stderr=pipe) as process:
        try:
            printed, said = process.communicate(timeout=load.warmup + load.seconds + TIMEOUT)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"Expected {peer.title} to end, but it goes on publishing.") from None
    if process.returncode:
        failed = ServerFailed(f"Expected {peer.title} to publish, but it ended: {process.returncode}.")
        failed.add_note(said.strip())
        raise failed
    published: dict[str, float] = json.loads(printed)
    return published


def ask(server: Server, path: str, **parameters: int) -> Any:
    """The answer to a GET, or with parameters to a POST.

    :raises ServerFailed: there is none.
    """
    # Not urlopen(), which asks a proxy if there is one.
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)) as connection:
        try:
            connection.request("POST" if parameters else "GET", f"/{path}?{urlencode(parameters)}")
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as exc:
            raise ServerFailed(f"Expected an answer to /{path}, but got: {exc!r}") from exc
    if answer.status != HTTPStatus.OK:
        raise ServerFailed(f"Expected an answer to /{path}, but got: {answer.status} {answer.reason}")
    return json.loads(body)
