"""Arguments and options that several commands share, and how their values are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import typer

from hubbub.cli.failures import fail
from hubbub.core.publication import Position
from hubbub.exceptions import InvalidPosition

#: The environment variable that may hold the URL: all users of a machine can read a command line.
URL_VARIABLE = "HUBBUB_URL"

URL_HELP = (
    "The URL given to Hub(): sqlite:///hub.db, redis://…, postgresql://… Defaults to the environment "
    f"variable {URL_VARIABLE}, which is the right place for a URL with a password."
)

URL: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="URL", help=URL_HELP, show_default=False, envvar=URL_VARIABLE, show_envvar=False),
]
Namespace: TypeAlias = Annotated[str, typer.Option(help="The namespace given to Hub().")]
Host: TypeAlias = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all addresses.")]
Port: TypeAlias = Annotated[
    int, typer.Option(min=0, max=65535, help="Port to listen on; 0 chooses a free port.")
]


def is_url(word: str) -> bool:
    """Whether an argument is meant as the URL of an engine."""
    return "://" in word


def url_from(words: Sequence[str]) -> str:
    """Return the URL of the engine: the one argument in ``words``, or the environment variable."""
    if len(words) > 1:
        fail("Expected URL, CHANNEL and DATA, but got more arguments. Put a message with spaces in quotes.")
    url = words[0] if words else os.environ.get(URL_VARIABLE)
    if not url:
        fail(f"The URL of the engine is missing: give it as the first argument, or set {URL_VARIABLE}.")
    return url


def format_position(position: Position) -> str:
    """``position`` as :func:`parse_position` reads it."""
    return f"{position.offset}:{position.epoch}"


def parse_position(text: str) -> Position:
    """Parse the value of ``--since``, or exit with an error."""
    try:
        return Position.parse(text)
    except InvalidPosition:
        fail(f"Expected --since to be 'start' or OFFSET:EPOCH, such as 17:c0ffee42, but got {text!r}.")
