"""A part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """``items``, in pieces of ``size``; the last may be smaller."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
