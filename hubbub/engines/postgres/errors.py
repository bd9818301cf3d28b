"""What a database or a network that does not do as expected raises, and how that is told."""

from __future__ import annotations

import asyncpg

from hubbub.engines.postgres.address import DEADLINE

ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def why(exc: BaseException) -> str:
    """What happened, for people."""
    if isinstance(exc, TimeoutError) and not str(exc):
        return f"no answer within {DEADLINE:g} s."
    return str(exc) or type(exc).__name__
