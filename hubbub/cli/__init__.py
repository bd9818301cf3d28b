"""The command line: ``hubbub run``, ``demo``, ``publish``, ``tail``, ``doctor``."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from hubbub import __version__
from hubbub.cli.demo import demo
from hubbub.cli.doctor import doctor
from hubbub.cli.publish import publish
from hubbub.cli.run import run
from hubbub.cli.tail import tail

app = typer.Typer(
    name="hubbub",
    help="Real-time channels for FastAPI.",
    epilog="Start with: hubbub demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for command in (run, demo, publish, tail, doctor):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hubbub {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Real-time channels for FastAPI."""


def main() -> None:
    """Run the ``hubbub`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A character that the terminal cannot show must not end the command.
            stream.reconfigure(errors="backslashreplace")
    app()
