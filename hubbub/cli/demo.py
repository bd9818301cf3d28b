"""``hubbub demo``: a chat to show to a friend."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hubbub.cli.server import Host, Port, serve


def demo(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve it.")] = 1,
    url: Annotated[
        str | None, typer.Option(help="The engine. By default a file of SQLite in your cache directory.")
    ] = None,
) -> None:
    """Serve a chat that is built on a hub; open it in two tabs. Kill it, start it again: it goes on.

    [bold]Examples[/bold]

      hubbub demo

      hubbub demo --workers 2

      hubbub demo --host 0.0.0.0 --port 8080 --url redis://localhost
    """
    # The workers' processes inherit it.
    os.environ["HUBBUB_DEMO_URL"] = url or f"sqlite:///{_file()}"
    serve("hubbub.demo.app:app", host=host, port=port, workers=workers, drain_seconds=5)


def _file() -> Path:
    """Where the demo keeps what is said, from one start to the next."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hubbub"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        # A user without a home gets a directory that is gone with the machine's next start, or before.
        cache = Path(tempfile.mkdtemp(prefix="hubbub-"))
    return cache / "demo.db"
