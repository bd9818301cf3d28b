"""The server behind ``hubbub run`` and ``hubbub demo``: uvicorn, set up for many open sockets."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path
from socket import socket
from types import FrameType
from typing import Any

import uvicorn

from hubbub.cli.descriptors import raise_limit
from hubbub.cli.lifespan import Lifespan
from hubbub.cli.supervisors import STARTUP_FAILURE, Reloader, Workers
from hubbub.servers.http import HubHTTPProtocol
from hubbub.servers.uvicorn import HubProtocol


class Config(uvicorn.Config):
    """uvicorn's settings, for this process and its workers, with the app inside a :class:`Lifespan`."""

    def load(self) -> None:
        super().load()
        self.loaded_app = Lifespan(self.loaded_app)


class Server(uvicorn.Server):
    """uvicorn's server, which ends at once on a second SIGTERM."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._has_been_terminated = False
        self._is_draining = False

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self._is_draining = True
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:
            # Before the drain has begun, a second signal is a duplicate of the first: systemd signals all
            # processes of a service, and the parent forwards the signal to its workers.
            if self._has_been_terminated and self._is_draining:
                # Not through the event loop, which may be blocked.
                signal.signal(sig, signal.SIG_DFL)
                signal.raise_signal(sig)
            self._has_been_terminated = True
        super().handle_exit(sig, frame)


def serve(
    target: str, *, host: str, port: int, drain_seconds: int, compress: bool = False, **options: Any
) -> None:
    """Serve an app until a signal ends the server.

    :param target: the app, as ``"package.module:name"``.
    :param host: the address to listen on.
    :param port: the port to listen on; 0 chooses a free port.
    :param drain_seconds: seconds that connections and handlers may take to end at shutdown.
    :param compress: whether to compress messages for clients that support permessage-deflate.
    :param options: further arguments of ``uvicorn.Config``.
    """
    raise_limit()
    config = Config(
        target,
        host=host,
        port=port,
        timeout_graceful_shutdown=drain_seconds,
        http=HubHTTPProtocol,
        ws=HubProtocol,
        ws_per_message_deflate=compress,
        **options,
    )
    # The rest is uvicorn.run() with our own classes.
    server = Server(config)
    has_failed = False
    try:
        with suppress(KeyboardInterrupt):
            if config.should_reload:
                Reloader(config, target=uvicorn.Server(config).run, sockets=[config.bind_socket()]).run()
            elif config.workers > 1:
                workers = Workers(config, sockets=[config.bind_socket()])
                workers.run()
                has_failed = workers.has_failed
            else:
                # After a clean shutdown uvicorn raises the signal that caused it once more.
                signal.signal(signal.SIGTERM, lambda sig, frame: sys.exit(0))
                server.run()
                has_failed = not server.started
    finally:
        if config.uds:
            Path(config.uds).unlink(missing_ok=True)
    if has_failed:
        sys.exit(STARTUP_FAILURE)
