"""``hubbub demo``: a chat to show to a friend."""

from __future__ import annotations

from hubbub.cli.server import Host, Port, serve


def demo(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Serve a chat that is built on a hub; open it in two tabs.

    [bold]Examples[/bold]

      hubbub demo

      hubbub demo --host 0.0.0.0 --port 8080
    """
    serve("hubbub.demo.app:app", host=host, port=port, drain_seconds=5)
