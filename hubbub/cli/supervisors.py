"""The parent processes of ``--workers`` and ``--reload``: uvicorn's, which a second signal ends at once.

A worker that cannot start, because the engine is away or the app is broken, ends the parent too if no other
one serves or ever has. If others do, they go on: clients that are connected stay so, and the worker is tried
again.
"""

from __future__ import annotations

import logging
import signal
import time
from socket import socket
from types import FrameType

import uvicorn
from uvicorn.supervisors import ChangeReload, Multiprocess
from uvicorn.supervisors.multiprocess import Process

logger = logging.getLogger("uvicorn.error")

#: What uvicorn and its workers exit with when the app does not start or the port is taken.
STARTUP_FAILURE = 3

#: Seconds until a worker that could not start is tried again.
RETRY = 5.0


class Workers(Multiprocess):
    """Several processes that serve the same app."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        #: Whether it ended because no worker could start.
        self.has_failed = False
        # Whether any has ever served, and when those that could not start are tried again.
        self._has_served = False
        self._retries: list[float] = []
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._handle_exit)

    def keep_subprocess_alive(self) -> None:
        # Instead of uvicorn's own, which stops all workers when one cannot start. Once one has served, it is
        # not the app that is broken: its engine may be away, which those that run live through.
        if not self._has_served:
            self._has_served = any(worker.is_ready(timeout=1) for worker in self.processes)
        for worker in list(self.processes):
            if self.should_exit.is_set():
                return
            if worker.is_alive(timeout=self.config.timeout_worker_healthcheck):
                continue
            # It has ended, or hangs.
            worker.kill()
            worker.join()
            self.processes.remove(worker)
            if worker.process.exitcode != STARTUP_FAILURE:
                logger.info("Child process [%s] died.", worker.pid)
                self._retries.append(0.0)
            elif self.processes or self._has_served:
                logger.error(
                    "Child process [%s] did not start. To be tried again in %g s.", worker.pid, RETRY
                )
                self._retries.append(time.monotonic() + RETRY)
            else:
                logger.error("Child process [%s] did not start, nor does any other serve.", worker.pid)
                self.has_failed = True
                self.should_exit.set()
                return
        now = time.monotonic()
        for _ in [due for due in self._retries if due <= now]:
            worker = Process(self.config, self.sockets)
            worker.start()
            self.processes.append(worker)
        self._retries = [due for due in self._retries if due > now]

    def _handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit.is_set():
            self.signal_queue.append(sig)
            return
        # The parent waits for the workers, and looks into the queue no more.
        for worker in self.processes:
            worker.process.kill()


class Reloader(ChangeReload):  # type: ignore[misc, valid-type]
    """One process that serves the app, and is started anew when a file changes."""

    def signal_handler(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit.is_set():
            self.process.kill()
        super().signal_handler(sig, frame)
