"""A publication as the database has it: what its functions are called with, and what its tables hold."""

from __future__ import annotations

from typing import Any

import asyncpg

from hubbub.core.history import History
from hubbub.core.publication import START, Position, Publication
from hubbub.engines.base import Top


def as_arguments(publication: Publication, history: History | None, key: str | None) -> tuple[Any, ...]:
    """What the database's functions ``append`` and ``accept`` are called with."""
    size, ttl = (history.size, history.ttl) if history is not None else (None, None)
    channel, data, kind = publication.channel, publication.data, publication.kind
    return channel, data, kind, size, ttl, key, publication.exclude, publication.id


def as_publication(row: asyncpg.Record) -> Publication:
    """The publication in a row of the table, whose ``seconds`` is its time."""
    return Publication(
        row["channel"],
        row["data"],
        row["kind"],
        row["exclude"],
        row["id"],
        row["offset"],
        row["epoch"],
        row["seconds"],
    )


def as_top(row: asyncpg.Record) -> Top:
    """Where the stream in a row stands, and the id of the publication there."""
    if row["size"] is None:
        return Top(START)
    return Top(Position(row["offset"], row["epoch"]), row["id"] or "")
