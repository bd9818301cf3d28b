"""The server behind ``hubbub run`` and ``hubbub demo``: uvicorn, set up for many open sockets."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path
from socket import socket
from types import FrameType
from typing import Annotated, Any, TypeAlias

import typer
import uvicorn

from hubbub.cli.descriptors import raise_limit
from hubbub.cli.lifespan import Lifespan
from hubbub.cli.supervisors import STARTUP_FAILURE, Reloader, Workers
from hubbub.servers.http import HubHTTPProtocol
from hubbub.servers.uvicorn import HubProtocol

Host: TypeAlias = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")]
Port: TypeAlias = Annotated[
    int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
]


class Config(uvicorn.Config):
    """uvicorn's settings, and its worker processes', for an app that tells in one line what it lacks."""

    def load(self) -> None:
        super().load()
        self.loaded_app = Lifespan(self.loaded_app)


class Server(uvicorn.Server):
    """uvicorn's server, which a second SIGTERM ends at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._has_been_terminated = False
        self._is_draining = False

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self._is_draining = True
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:
            # Before the drain has begun it is the first one come twice: from systemd, which tells all
            # processes, and from a parent that passes on what it was told itself.
            if self._has_been_terminated and self._is_draining:
                # Not by way of the event loop, which may be what is stuck.
                signal.signal(sig, signal.SIG_DFL)
                signal.raise_signal(sig)
            self._has_been_terminated = True
        super().handle_exit(sig, frame)


def serve(
    target: str, *, host: str, port: int, drain_seconds: int, compress: bool = False, **options: Any
) -> None:
    """Serve until a signal ends it.

    :param target: ``"package.module:name"``.
    :param drain_seconds: how long connections and handlers may take to end.
    :param compress: whether to compress what goes to clients that can take it so.
    :param options: more of what ``uvicorn.Config`` takes.
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
    # The rest is what uvicorn.run() does, with classes of ours.
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
                # After a clean end uvicorn raises the signal that asked for it once again.
                signal.signal(signal.SIGTERM, lambda sig, frame: sys.exit(0))
                server.run()
                has_failed = not server.started
    finally:
        if config.uds:
            Path(config.uds).unlink(missing_ok=True)
    if has_failed:
        sys.exit(STARTUP_FAILURE)
