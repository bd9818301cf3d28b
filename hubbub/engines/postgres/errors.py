"""What a database or a network that does not do as expected raises, and how that is told."""

from __future__ import annotations

import asyncpg

from hubbub.engines.postgres.address import DEADLINE

ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

#: Classes of SQLSTATE for values that are wrong: data exceptions, and what exceeds a limit of the server.
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_REFUSED = ("22", "54")


def is_refused(exc: BaseException) -> bool:
    """Whether what was asked is at fault, and neither the database nor the way there."""
    if isinstance(exc, asyncpg.PostgresError):
        return (exc.sqlstate or "")[:2] in _REFUSED
    # What asyncpg cannot encode. It has no public name of its own for that.
    return (
        isinstance(exc, asyncpg.InterfaceError)
        and isinstance(exc, ValueError)
        and not isinstance(exc, asyncpg.ClientConfigurationError)
    )


def refused(exc: BaseException) -> ValueError:
    """What to raise then."""
    return ValueError(f"PostgreSQL refuses an argument: {why(exc)}")


def why(exc: BaseException) -> str:
    """What happened, for people."""
    if isinstance(exc, TimeoutError) and not str(exc):
        return f"no answer within {DEADLINE:g} s."
    return str(exc) or type(exc).__name__
