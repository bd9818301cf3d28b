"""How the command line says that something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from hubbub.engines import doctor_command
from hubbub.exceptions import EngineUnavailable, HubbubError

#: What a command exits with that was used wrongly, and one that did not succeed.
WRONG_USE, FAILURE = 2, 1


def fail(message: str, status: int = WRONG_USE) -> NoReturn:
    """Print ``message`` to stderr and exit."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(status)


@contextmanager
def explained(url: str, namespace: str) -> Iterator[None]:
    """Exit with the message of what Hubbub raises about the engine at ``url``, without a traceback."""
    try:
        yield
    except EngineUnavailable as exc:
        fail(f"{exc} To find out more, run: {doctor_command(url, namespace)}", FAILURE)
    except (HubbubError, ValueError) as exc:
        fail(str(exc))
