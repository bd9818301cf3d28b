"""The parent processes of ``--workers`` and ``--reload``: uvicorn's, which a second signal ends at once.

The second signal counts for the parent only. To its children systemd sends a SIGTERM, and a terminal a
SIGINT, beside the one that comes from the parent.
"""

from __future__ import annotations

import signal
from socket import socket
from types import FrameType

import uvicorn
from uvicorn.supervisors import ChangeReload, Multiprocess


class Workers(Multiprocess):
    """Several processes that serve the same app."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._handle_exit)

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
