"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import typer

from hubbub.cli.errors import fail

#: Where the URL may be given too: what is on a command line, all users of the machine can read.
URL_VARIABLE = "HUBBUB_URL"

URL_HELP = (
    "The URL given to Hub(): sqlite:///hub.db, redis://…, postgresql://… By default that in the environment "
    f"variable {URL_VARIABLE}, which is the place for one with a password."
)

URL: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="URL", help=URL_HELP, show_default=False, envvar=URL_VARIABLE, show_envvar=False),
]
Namespace: TypeAlias = Annotated[str, typer.Option(help="The namespace given to Hub().")]


def is_url(word: str) -> bool:
    """Whether a word of a command line is meant as the URL of an engine."""
    return "://" in word


def url_from(words: Sequence[str]) -> str:
    """The URL of the engine: ``words``, if it is there, or that of the environment."""
    if len(words) > 1:
        fail("Too many arguments. A message with spaces is one argument if it is put in quotes.")
    url = words[0] if words else os.environ.get(URL_VARIABLE)
    if not url:
        fail(f"The URL of the engine is missing: give it as the first argument, or set {URL_VARIABLE}.")
    return url
