"""The server behind ``hubbub run`` and ``hubbub demo``: uvicorn, set up for many open sockets."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import typer
import uvicorn

from hubbub.servers.uvicorn import HubProtocol

Host: TypeAlias = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")]
Port: TypeAlias = Annotated[
    int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
]


def serve(
    target: str, *, host: str, port: int, drain_seconds: int, compress: bool = False, **options: Any
) -> None:
    """Serve until a signal ends it.

    :param target: ``"package.module:name"``.
    :param drain_seconds: how long connections and handlers may take to end.
    :param compress: whether to compress what goes to clients that can take it so.
    :param options: more of what ``uvicorn.run`` takes.
    """
    uvicorn.run(
        target,
        host=host,
        port=port,
        timeout_graceful_shutdown=drain_seconds,
        ws=HubProtocol,
        ws_per_message_deflate=compress,
        **options,
    )
