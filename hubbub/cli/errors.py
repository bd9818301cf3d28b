"""How the command line says that something is wrong with what it was given."""

from __future__ import annotations

from typing import NoReturn

import typer


def fail(message: str) -> NoReturn:
    """Print ``message`` to stderr and exit with status 2, as for any other wrong use of a command."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(2)
