"""The engine's statements, their arguments and their rows.

``{schema}`` stands for the schema's name as an identifier.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from hubbub.core.history import History
from hubbub.core.publication import START, Position, Publication
from hubbub.engines.base import Top

# Parameter 1 is how many milliseconds the statement waits for the lock of the channel, parameter 2. It is set
# before the function is called, because an argument of the function depends on it.
_PATIENCE = "set_config('lock_timeout', $1, true) AS patience"
_CHANNEL = "CASE WHEN settings.patience IS NOT NULL THEN $2::text END"

# Publishes a batch to one channel; {notify} is whether it is announced, 'on' or 'off'. Once the channel is
# locked, lock_timeout is reset: the commit waits as long as it takes for the one other lock, for which all
# commits that notify queue up.
PUBLISH = f"""
WITH settings AS MATERIALIZED (
    SELECT {_PATIENCE}, set_config('hubbub.notify', '{{notify}}', true) AS notify
)
SELECT a."offset", a.epoch, set_config('lock_timeout', '0', true)
FROM settings
CROSS JOIN unnest($3::bytea[], $4::text[], $5::bigint[], $6::float8[], $7::text[], $8::text[], $9::text[])
    WITH ORDINALITY AS b (data, kind, size, ttl, key, exclude, id, number)
CROSS JOIN LATERAL {{schema}}.accept({_CHANNEL}, b.data, b.kind, b.size, b.ttl, b.key, b.exclude, b.id) AS a
ORDER BY b.number
"""

DECLARE = f"""
WITH settings AS MATERIALIZED (SELECT {_PATIENCE})
SELECT {{schema}}.declare({_CHANNEL}, $3, $4) FROM settings
"""

REMOVE_HISTORY = f"""
WITH settings AS MATERIALIZED (SELECT {_PATIENCE})
SELECT {{schema}}.remove_history({_CHANNEL}) FROM settings
"""

# Those of the given channels that have no history.
UNDECLARED = """
SELECT c.channel FROM unnest($1::text[]) AS c (channel)
LEFT JOIN {schema}.streams s ON s.channel = c.channel
WHERE s.size IS NULL
"""

# The tops of channels: a row for each, in their order. Without a stream its columns are NULL; so is the id if
# the newest publication is not kept any more.
TOPS = """
SELECT s.sequence, s.size, s.ttl, s.sequence - s.base AS "offset", s.epoch, p.id
FROM unnest($1::text[]) WITH ORDINALITY AS c (channel, number)
LEFT JOIN {schema}.streams s ON s.channel = c.channel
LEFT JOIN {schema}.publications p ON p.channel = s.channel AND p.sequence = s.sequence
    AND s.size IS NOT NULL AND s.sequence > s.base
    AND p.time >= clock_timestamp() - make_interval(secs => least(s.ttl, 3e9))
ORDER BY c.number
"""

# A channel without publications to return is one row without a publication.
_PAGE = """
SELECT s."offset" AS top, s.epoch AS top_epoch, p.*, extract(epoch FROM p.time)::float8 AS seconds
FROM (
    SELECT *, sequence - base AS "offset",
        clock_timestamp() - make_interval(secs => least(ttl, 3e9)) AS oldest
    FROM {schema}.streams WHERE channel = $1 AND size IS NOT NULL
) AS s
LEFT JOIN LATERAL (
    SELECT * FROM {schema}.publications o
    WHERE o.channel = s.channel AND o.time >= s.oldest AND ($2 IN ('', s.epoch))
        AND o.sequence > s.base + greatest(s."offset" - s.size, $3::bigint)
        AND o.sequence < s.base + least(s."offset" + 1, $4::bigint)
    ORDER BY o.sequence {direction} LIMIT $5
) AS p ON true
ORDER BY p.sequence {direction}
"""

# Parameters: channel, epoch, offset after which and before which publications are read, limit.
HISTORY = _PAGE.replace("{direction}", "ASC")
HISTORY_BACKWARDS = _PAGE.replace("{direction}", "DESC")

UPDATE_PRESENCE = "SELECT {schema}.update_presence($1, $2, $3, $4, $5, $6)"
EXPIRE_PRESENCE = "SELECT * FROM {schema}.expire_presence($1)"
PRESENCE = "SELECT connection, data FROM {schema}.presence WHERE channel = $1"


def as_arguments(publication: Publication, history: History | None, key: str | None) -> tuple[Any, ...]:
    """Return the arguments of the database's functions ``append`` and ``accept``."""
    size, ttl = (history.size, history.ttl) if history is not None else (None, None)
    channel, data, kind = publication.channel, publication.data, publication.kind
    return channel, data, kind, size, ttl, key, publication.exclude, publication.id


def as_publication(row: asyncpg.Record) -> Publication:
    """Return the publication in a row of the table, whose ``seconds`` is its time."""
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
    """Return the end of the stream in a row of ``TOPS``."""
    if row["size"] is None:
        return Top(START)
    return Top(Position(row["offset"], row["epoch"]), row["id"] or "")


def milliseconds(seconds: float) -> str:
    """Return ``seconds`` as a value of ``lock_timeout``."""
    return f"{seconds * 1000:.0f}"
