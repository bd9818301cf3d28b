"""The load generator: ``load.c``, pinned to a core of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from benchmarks.build import build
from benchmarks.peers import Peer


class LoadFailed(Exception):
    """The load generator gave up. The message says why: a client that was refused, lost, or never ready."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients do.

    :param mode: ``"fanout"``: client 0 publishes, all receive. ``"echo"``: each sends and waits for its own
        message. ``"idle"``: they are connected, nothing else.
    :param path: instead of the peer's.
    :param clients: how many there are.
    :param outstanding: messages on their way at a time: the next is sent when everyone has the oldest.
    :param size: bytes of a payload.
    :param settle: seconds to wait once all are connected; some servers make them members a while later.
    :param seconds: how long to measure, after ``warmup`` seconds that do not count.
    :param messages: instead of a time: stop when everyone has this many.
    :param rate: instead of ``outstanding``: messages per second, whether or not the server keeps up.
    :param stalled: of the clients, how many never read.
    :param channels: ``{}`` in the path counts from 0 to this, client by client, over and over.
    :param deadline: seconds after which a run ends in any case.
    """

    mode: str = "fanout"
    path: str = ""
    clients: int = 1000
    outstanding: int = 1
    size: int = 128
    settle: float = 0.3
    seconds: float = 3.0
    warmup: float = 0.5
    messages: int = 0
    rate: float = 0.0
    stalled: int = 0
    channels: int = 0
    deadline: float = 60.0


@dataclass(frozen=True, slots=True)
class Connected:
    """All clients are members.

    :param clients: how many there are.
    :param seconds: how long it took them.
    """

    clients: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What the load generator saw while it measured.

    :param deliveries: messages that arrived, those of all clients together.
    :param messages: messages that arrived at every client.
    :param outstanding: messages that had not yet when it stopped.
    :param load_cpu: share of its core that the generator used: well below 1 means that it did not hold the
        server up.
    :param misordered: messages that were not the next one: lost, doubled, or out of order.
    :param lost_clients: those whose connection ended.
    :param p50_us: and the like: microseconds from sending a message to its arrival at one client.
    :param stalled_ended: of the clients that never read, how many found their connection ended.
    :param stalled_bytes: what they found waiting for them.
    """

    deliveries: int
    messages: int
    outstanding: int
    seconds: float
    load_cpu: float
    misordered: int
    lost_clients: int
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    stalled: int = 0
    stalled_ended: int = 0
    stalled_bytes: int = 0

    @property
    def per_second(self) -> float:
        return self.deliveries / self.seconds


class Clients:
    """A load generator whose clients are all connected."""

    def __init__(self, process: subprocess.Popen[str], connected: Connected) -> None:
        self._process = process
        self.connected = connected

    def result(self) -> Result:
        """Wait for the end of the run.

        :raises LoadFailed: it did not come to an end.
        """
        return Result(**_answer(self._process))


@contextmanager
def connect(peer: Peer, port: int, load: Load, core: int) -> Iterator[Clients]:
    """Connect the clients of ``load`` to ``peer``, which listens on ``port``; they begin at once.

    :raises LoadFailed: not all of them became members.
    """
    receipt = [f"--receipt-after={peer.receipt[0]}", f"--receipt={peer.receipt[1]}"] if peer.receipt else []
    command = [
        str(build("load")),
        f"--port={port}",
        f"--path={load.path or peer.path}",
        f"--message={peer.message}",
        f"--ready={peer.ready}",
        *(f"--hello={hello}" for hello in peer.hello),
        *(f"--reply={received}={answer}" for received, answer in peer.replies),
        *receipt,
        *(f"--{name}={getattr(load, name)}" for name in Load.__slots__ if name != "path"),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        answer = _answer(process)
        yield Clients(process, Connected(int(answer["connected"]), answer["seconds"]))
    finally:
        # Idle clients stay until their standard input ends.
        process.communicate()


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = _pipe(process.stdout).readline()
    if not line:
        raise LoadFailed(_pipe(process.stderr).read().strip() or "The load generator has crashed.")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
