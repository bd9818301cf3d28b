"""``hubbub demo``: a chat to show to a friend."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from hubbub.cli.errors import fail
from hubbub.cli.options import URL_VARIABLE
from hubbub.cli.server import Host, Port, serve
from hubbub.security.hosts import parse_hosts


def demo(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve it.")] = 1,
    url: Annotated[
        str | None,
        typer.Option(
            help="The engine. By default a file of SQLite in your cache directory.", envvar=URL_VARIABLE
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A further name under which it is opened, such as a tunnel's; may be repeated.",
        ),
    ] = None,
) -> None:
    """Serve a chat that is built on a hub; open it in two tabs. Kill it, start it again: it goes on.

    [bold]Examples[/bold]

      hubbub demo

      hubbub demo --workers 2

      hubbub demo --host 0.0.0.0 --port 8080 --url redis://localhost
    """
    hosts = [*_hosts(host), *(allow_host or ())]
    try:
        parse_hosts(hosts)
    except ValueError as exc:
        fail(str(exc))
    # The workers' processes inherit them.
    os.environ["HUBBUB_DEMO_URL"] = url or f"sqlite:///{_file()}"
    os.environ["HUBBUB_DEMO_HOSTS"] = " ".join(hosts)
    serve("hubbub.demo.app:app", host=host, port=port, workers=workers, drain_seconds=5)


def _hosts(host: str) -> list[str]:
    """The names under which a demo that listens on ``host`` is opened.

    If that is every address, it is any address, which is of no use to DNS rebinding, or the machine's name.
    """
    local = ["localhost", "127.0.0.0/8", "::1"]
    try:
        is_every_address = not host or ip_address(host).is_unspecified
    except ValueError:
        is_every_address = False
    if not is_every_address:
        return [*local, host.partition("%")[0]]
    machine = socket.gethostname().partition(".")[0]
    names = [machine, f"{machine}.local"] if re.fullmatch(r"[\w-]+", machine, re.ASCII) else []
    return [*local, "0.0.0.0/0", "::/0", *names]


def _file() -> Path:
    """Where the demo keeps what is said, from one start to the next."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hubbub"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        # A user without a home gets a directory that is gone with the machine's next start, or before.
        cache = Path(tempfile.mkdtemp(prefix="hubbub-"))
    return cache / "demo.db"
