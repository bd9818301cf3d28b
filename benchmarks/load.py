"""The load generator: ``load.c``, pinned to a core of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import PIPE
from typing import IO, Any

from benchmarks.build import build
from benchmarks.peers import Peer
from benchmarks.process import start
from benchmarks.server import Server


class LoadFailed(Exception):
    """The load generator failed, or lost clients. The message has the output of the server."""


@dataclass(frozen=True, slots=True)
class Load:
    """The behaviour of the clients.

    :param mode: ``"fanout"``: client 0 publishes, all receive. ``"echo"``: each sends and waits for its own
        message. ``"idle"``: they stay connected. ``"resume"``: all resume at once, and each receives
        ``messages`` messages of the history.
    :param path: replaces that of the peer.
    :param clients: their number.
    :param outstanding: messages under way at a time: the next is sent when all clients have the oldest. It
        is 1 in an echo.
    :param size: bytes of a payload; at least 16.
    :param connecting: handshakes at a time.
    :param settle: seconds to wait after all are connected; some servers subscribe them later.
    :param seconds: duration of the measurement, after ``warmup`` seconds that do not count.
    :param messages: instead of a duration: stop when all clients have this many, or nothing has arrived for
        ``patience`` seconds.
    :param rate: instead of ``outstanding``: messages per second, whether or not the server keeps up.
    :param stalled: number of the clients that never read, and that the run does not wait for.
    :param channels: ``{}`` in the path counts from 0 to this, client by client, over and over.
    :param patience: seconds without a message after which missing messages count as lost.
    :param deadline: seconds for connecting, and again for the rest of the run.
    """

    mode: str = "fanout"
    path: str = ""
    clients: int = 1000
    connecting: int = 64
    outstanding: int = 1
    size: int = 128
    settle: float = 0.3
    seconds: float = 3.0
    warmup: float = 0.5
    messages: int = 0
    rate: float = 0.0
    stalled: int = 0
    channels: int = 0
    patience: float = 5.0
    deadline: float = 60.0


@dataclass(frozen=True, slots=True)
class Connected:
    """All clients are connected and subscribed.

    :param clients: their number.
    :param seconds: the time that it took.
    """

    clients: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """The numbers of the load generator.

    :param deliveries: messages that arrived, summed over clients.
    :param messages: messages that every client that reads has received.
    :param outstanding: messages that some client had not received at the end.
    :param seconds: duration of the measurement.
    :param load_cpu: CPU time that the generator used, as a share of ``seconds``.
    :param load_idle: the share of the time in which it waited for the server.
    :param server_cpu: CPU time that the server used, as a share of ``seconds``.
    :param misordered: messages that were not the next one: doubled, out of order, or after one that was lost.
    :param missing: messages that had not arrived ``patience`` seconds after the last one that did.
    :param expected: deliveries there would have been without losses, also before and after it measured.
    :param lost_clients: clients that read and were disconnected. The first ends the run.
    :param p50_us: and the like: microseconds from sending a message to its arrival at one client; if they
        resume, from when the first of them connects.
    :param own_p50_us: the same for the client that publishes, if it is connected to a server of its own; it
        does not count for the others then.
    :param stalled_ended: number of the clients that never read whose connection was closed.
    :param stalled_bytes: bytes that waited for them.
    """

    deliveries: int
    messages: int
    outstanding: int
    seconds: float
    load_cpu: float
    load_idle: float
    server_cpu: float
    misordered: int
    missing: int
    expected: int
    lost_clients: int
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    own_p50_us: float
    own_p99_us: float
    own_max_us: float
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

        :raises LoadFailed: it failed.
        """
        return Result(**_answer(self._process))

    def leave(self) -> int:
        """Disconnect ``"idle"`` clients, and return the number of messages that they received.

        If there were any, it waits until none has arrived for ``patience`` seconds.

        :raises LoadFailed: a client was disconnected before.
        """
        _pipe(self._process.stdin).close()
        answer = _answer(self._process)
        if lost := answer["lost_clients"]:
            raise LoadFailed(f"The server disconnected {lost} idle clients.")
        return int(answer["arrived"])


@contextmanager
def connect(
    peer: Peer, server: Server, load: Load, core: int, publisher: Server | None = None
) -> Iterator[Clients]:
    """Connect the clients of ``load`` to ``server``, which is a ``peer``, and begin.

    :param core: the CPU of the generator.
    :param publisher: another server of the peer, to which the client that publishes is connected.
    :raises LoadFailed: not all of them joined.
    """
    command = [
        str(build("load")),
        f"--port={server.port}",
        f"--publish_port={publisher.port if publisher else 0}",
        f"--server={server.pid}",
        f"--path={load.path or peer.path}",
        f"--message={peer.message}",
        f"--ready={peer.ready}",
        *(f"--hello={hello}" for hello in peer.hello),
        *(f"--reply={received}={answer}" for received, answer in peer.replies),
        *(f"--{name}={getattr(load, name)}" for name in Load.__slots__ if name != "path"),
    ]
    if peer.receipt:
        after, receipt = peer.receipt
        command += [f"--receipt_after={after}", f"--receipt={receipt}"]
    with start(command, core, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        answer = _answer(process)
        yield Clients(process, Connected(int(answer["connected"]), answer["seconds"]))


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Read its next line. If there is none, it has failed and printed the reason."""
    line = _pipe(process.stdout).readline()
    if not line.endswith("\n"):
        reason = _pipe(process.stderr).read().strip()
        raise LoadFailed(reason or f"The load generator has crashed, with code {process.wait()}.")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
