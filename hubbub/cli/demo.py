"""``hubbub demo``: serve the demo chat."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from hubbub.cli.arguments import URL_VARIABLE, Host, Port
from hubbub.cli.failures import fail
from hubbub.cli.server import serve
from hubbub.security.hosts import parse_hosts


def demo(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes that serve the demo.")] = 1,
    url: Annotated[
        str | None,
        typer.Option(
            help="The engine's URL. By default an SQLite file in your cache directory.", envvar=URL_VARIABLE
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Another host name under which browsers open the demo, such as a tunnel's; repeatable.",
        ),
    ] = None,
) -> None:
    """Serve a chat built on Hubbub. Open it in two tabs; restart it, and no message is lost.

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
    # Worker processes inherit the environment.
    os.environ["HUBBUB_DEMO_URL"] = url or f"sqlite:///{_file()}"
    os.environ["HUBBUB_DEMO_HOSTS"] = " ".join(hosts)
    serve("hubbub.demo.app:app", host=host, port=port, workers=workers, drain_seconds=5)


def _hosts(host: str) -> list[str]:
    """Return the host names that a demo listening on ``host`` answers to.

    If it listens on all addresses: any IP address, since DNS rebinding needs a name, and the machine's name.
    """
    local = ["localhost", "127.0.0.0/8", "::1"]
    try:
        listens_everywhere = not host or ip_address(host).is_unspecified
    except ValueError:
        listens_everywhere = False
    if not listens_everywhere:
        return [*local, host.partition("%")[0]]
    machine = socket.gethostname().partition(".")[0]
    names = [machine, f"{machine}.local"] if re.fullmatch(r"[\w-]+", machine, re.ASCII) else []
    return [*local, "0.0.0.0/0", "::/0", *names]


def _file() -> Path:
    """Return the SQLite file that keeps the demo's messages between two starts."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hubbub"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        # The user has no home directory: use a temporary one, which the next reboot may remove.
        cache = Path(tempfile.mkdtemp(prefix="hubbub-"))
    return cache / "demo.db"
