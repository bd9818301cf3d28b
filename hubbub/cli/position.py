"""Positions as the command line writes them: ``OFFSET:EPOCH``."""

from __future__ import annotations

from hubbub.cli.errors import fail
from hubbub.core.publication import START, Position


def show(position: Position) -> str:
    """``position`` as :func:`parse` reads it."""
    return f"{position.offset}:{position.epoch}"


def parse(text: str) -> Position:
    """The position that ``text`` is; or exit with an error."""
    if text == "start":
        return START
    offset, colon, epoch = text.partition(":")
    if not (colon and offset.isdecimal() and offset.isascii()):
        fail(f"Expected --since to be 'start' or OFFSET:EPOCH, such as 17:c0ffee42, but got {text!r}.")
    return Position(int(offset), epoch)
