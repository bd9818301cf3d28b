"""``hubbub run``: serve an app with uvicorn, set up for Hubbub."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hubbub.cli.arguments import Host, Port
from hubbub.cli.failures import fail
from hubbub.cli.server import serve
from hubbub.cli.target import check_target
from hubbub.hub import hubs
from hubbub.metrics.router import collectors
from hubbub.servers.workers import ADVICE


class LogLevel(StrEnum):
    """uvicorn's log levels."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"
    TRACE = "trace"


def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="The app, as module:name, imported from the current directory."
        ),
    ],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[
        int, typer.Option(min=1, envvar="WEB_CONCURRENCY", help="Number of processes that serve the app.")
    ] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart when a file changes. For development.")
    ] = False,
    log_level: Annotated[LogLevel, typer.Option(help="How much to log.")] = LogLevel.INFO,
    uds: Annotated[Path | None, typer.Option(help="Listen on this Unix socket instead of a port.")] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Private key, for https and wss.")
    ] = None,
    ssl_certfile: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Certificate, for https and wss.")
    ] = None,
    forwarded_allow_ips: Annotated[
        str | None,
        typer.Option(
            envvar="FORWARDED_ALLOW_IPS",
            help="Proxies whose X-Forwarded-* headers are trusted, comma-separated; '*' trusts all. "
            "By default 127.0.0.1.",
        ),
    ] = None,
    compress: Annotated[
        bool,
        typer.Option(
            "--compress",
            help="Compress messages of 256 bytes or more for clients that support permessage-deflate, as "
            "browsers do. Each message is compressed once for all clients. Saves traffic, costs CPU.",
        ),
    ] = False,
    drain_seconds: Annotated[
        int,
        typer.Option(
            min=0,
            help="Seconds that shutdown may take: connections are closed one after another, with code 1012 "
            "(service restart), and handlers end. Handlers that still run after that are cancelled. A second "
            "SIGTERM or Ctrl+C ends the server at once.",
        ),
    ] = 10,
) -> None:
    """Serve a FastAPI app.

    [bold]Examples[/bold]

      hubbub run main:app

      hubbub run main:app --reload

      hubbub run shop.main:app --host 0.0.0.0 --port 80

      hubbub run main:app --ssl-keyfile key.pem --ssl-certfile cert.pem
    """
    if reload and workers > 1:
        fail("--reload uses one process: leave out --reload or --workers.")
    if ssl_keyfile and not ssl_certfile:
        fail("--ssl-keyfile needs a certificate: add --ssl-certfile.")
    # With --reload, a module that does not import is work in progress: the next change may fix it.
    check_target(target, import_it=not reload)
    if workers > 1:
        _check_hubs(workers)
        _check_metrics(workers)
    serve(
        target,
        host=host,
        port=port,
        drain_seconds=drain_seconds,
        compress=compress,
        workers=workers,
        reload=reload,
        log_level=log_level.value,
        uds=str(uds) if uds else None,
        ssl_keyfile=str(ssl_keyfile) if ssl_keyfile else None,
        ssl_certfile=str(ssl_certfile) if ssl_certfile else None,
        forwarded_allow_ips=forwarded_allow_ips,
    )


def _check_hubs(workers: int) -> None:
    """Exit with an error if the target has a hub whose messages would not reach the other workers."""
    if any(not (hub.engine.across_processes or hub.engine.is_alone) for hub in hubs):
        fail(
            f"Expected one worker for a hub on memory://, which reaches only one process, but got --workers "
            f"{workers}. {ADVICE}"
        )


def _check_metrics(workers: int) -> None:
    """Warn if each scrape of the target gets the counts of another worker."""
    if collectors:
        typer.echo(
            f"Warning: a scrape of hub.metrics reaches one of the {workers} workers, and gets the counts of "
            "that one only. Send the metrics with FastAPI's telemetry, or run several servers with a port "
            "for each.",
            err=True,
        )
