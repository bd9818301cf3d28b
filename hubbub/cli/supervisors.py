"""The parent processes of ``--workers`` and ``--reload``: uvicorn's, which a second signal ends at once.

The second signal counts for the parent only. To its children systemd sends a SIGTERM, and a terminal a
SIGINT, beside the one that comes from the parent.
"""

from __future__ import annotations

import logging
import signal
import time
from socket import socket
from types import FrameType

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import ChangeReload, Multiprocess
from uvicorn.supervisors.multiprocess import Process

logger = logging.getLogger("uvicorn.error")

#: Seconds until a worker that could not start is tried again, from when it was tried last.
RETRY = 5.0


class Workers(Multiprocess):
    """Several processes that serve the same app."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        # Whether a worker has ever served, and when one was replaced last.
        self._has_served = False
        self._replaced = 0.0
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._handle_exit)

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have ended or hang.

        uvicorn's own would end them all as soon as one cannot start. Once a worker has served, it is not the
        app that is broken: its engine may be away, which those that run live through.
        """
        timeout = self.config.timeout_worker_healthcheck
        if not self._has_served:
            self._has_served = any(worker.is_ready(timeout=1) for worker in self.processes)
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set() or worker.is_alive(timeout):
                continue
            # Maybe it only hangs.
            worker.kill()
            worker.join()
            if worker.exitcode == STARTUP_FAILURE:
                if not self._has_served:
                    logger.error("Worker [%d] could not start: stopping.", worker.pid)
                    self.should_exit.set()
                    return
                if time.monotonic() < self._replaced + RETRY:
                    continue
            logger.warning("Worker [%d] has ended: starting another one.", worker.pid)
            self._replaced = time.monotonic()
            self.processes[index] = Process(self.config, self.sockets)
            self.processes[index].start()

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
