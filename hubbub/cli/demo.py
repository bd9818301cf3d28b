"""``hubbub demo``: a chat to show to a friend."""

from __future__ import annotations

from typing import Annotated

import typer
import uvicorn

from hubbub.servers.uvicorn import HubProtocol


def demo(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 8000,
) -> None:
    """Serve a chat that is built on a hub; open it in two tabs.

    [bold]Examples[/bold]

      hubbub demo

      hubbub demo --host 0.0.0.0 --port 8080
    """
    uvicorn.run(
        "hubbub.demo.app:app",
        host=host,
        port=port,
        ws=HubProtocol,
        timeout_graceful_shutdown=5,
        ws_per_message_deflate=False,
    )
