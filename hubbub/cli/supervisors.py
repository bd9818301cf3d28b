"""The parent processes of ``--workers`` and ``--reload``: uvicorn's, which end at once on a second signal.

A worker may fail to start, because the engine is unreachable or the app is broken. If no worker serves or
ever has, the parent ends too. Otherwise the other workers and their connections stay, and another worker is
started after ``RETRY`` seconds.
"""

from __future__ import annotations

import logging
import signal
import time
from socket import socket
from types import FrameType
from weakref import WeakKeyDictionary, WeakSet

import uvicorn
from uvicorn.supervisors import ChangeReload, Multiprocess
from uvicorn.supervisors.multiprocess import Process

logger = logging.getLogger("uvicorn.error")

#: Exit code of uvicorn and its workers when the app does not start or the port is taken.
STARTUP_FAILURE = 3

#: Seconds until another worker is started in place of one that could not start.
RETRY = 5.0

#: Seconds that a new worker may take to answer its first health check. Before it can, a process has to start
#: Python and import the server; on a busy machine that takes longer than a health check may take later.
START_PATIENCE = 60.0


class Workers(Multiprocess):
    """Several processes that serve the same app."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        #: Whether the parent ended because no worker could start.
        self.has_failed = False
        # Whether any worker has ever served, and the times at which workers are started again.
        self._has_served = False
        self._retries: list[float] = []
        # Workers that have answered a health check; and for the others, when they must have.
        self._has_answered: WeakSet[Process] = WeakSet()
        self._deadlines: WeakKeyDictionary[Process, float] = WeakKeyDictionary()
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._handle_exit)

    def keep_subprocess_alive(self) -> None:
        # Replaces uvicorn's own, which stops all workers when one cannot start. Once a worker has served, the
        # app itself is not broken: its engine may have an outage, which the running workers survive.
        if not self._has_served:
            self._has_served = any(worker.is_ready(timeout=1) for worker in self.processes)
        for worker in list(self.processes):
            if self.should_exit.is_set():
                return
            if self._is_healthy(worker):
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
                    "Child process [%s] could not start; starting another one in %g s.", worker.pid, RETRY
                )
                self._retries.append(time.monotonic() + RETRY)
            else:
                logger.error(
                    "Child process [%s] could not start, and no other one serves; stopping.", worker.pid
                )
                self.has_failed = True
                self.should_exit.set()
                return
        now = time.monotonic()
        for _ in [due for due in self._retries if due <= now]:
            worker = Process(self.config, self.sockets)
            worker.start()
            self.processes.append(worker)
        self._retries = [due for due in self._retries if due > now]

    def _is_healthy(self, worker: Process) -> bool:
        if worker.is_alive(timeout=self.config.timeout_worker_healthcheck):
            self._has_answered.add(worker)
            return True
        if worker in self._has_answered or not worker.process.is_alive():
            return False
        now = time.monotonic()
        return now < self._deadlines.setdefault(worker, now + START_PATIENCE)

    def _handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit.is_set():
            self.signal_queue.append(sig)
            return
        # The parent waits for its workers, and no longer reads the queue.
        for worker in self.processes:
            worker.process.kill()


class Reloader(ChangeReload):  # type: ignore[misc, valid-type]
    """One process that serves the app, and is restarted when a file changes."""

    def signal_handler(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit.is_set():
            self.process.kill()
        super().signal_handler(sig, frame)
