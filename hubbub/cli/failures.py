"""Failures of a command: an error message on standard error and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from hubbub.engines import doctor_command
from hubbub.exceptions import EngineUnavailable, HubbubError

#: Exit code of a command with wrong arguments.
WRONG_USE = 2

#: Exit code of a command that did not succeed.
FAILURE = 1


def fail(message: str, status: int = WRONG_USE) -> NoReturn:
    """Print ``message`` to standard error and exit with ``status``."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(status)


@contextmanager
def explained(url: str, namespace: str) -> Iterator[None]:
    """Turn Hubbub's errors into a message and an exit code, without a traceback.

    :param url: the engine's URL, for the ``hubbub doctor`` command in the message.
    :param namespace: its namespace, likewise.
    """
    try:
        yield
    except EngineUnavailable as exc:
        fail(f"{exc} To find out more, run: {doctor_command(url, namespace)}", FAILURE)
    except (HubbubError, ValueError) as exc:
        fail(str(exc))
