"""Positions on the command line."""

from __future__ import annotations

from hubbub.cli.errors import fail
from hubbub.core.publication import Position
from hubbub.exceptions import InvalidPosition


def show(position: Position) -> str:
    """``position`` as :func:`parse` reads it."""
    return f"{position.offset}:{position.epoch}"


def parse(text: str) -> Position:
    """The position that ``text`` is; or exit with an error."""
    try:
        return Position.parse(text)
    except InvalidPosition:
        fail(f"Expected --since to be 'start' or OFFSET:EPOCH, such as 17:c0ffee42, but got {text!r}.")
