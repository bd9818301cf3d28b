"""Transactions of the application: publishing on its own connection, of any driver that is supported.

Drivers are recognized by the names of their classes, so that only those in use are imported.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

#: Calls the database's ``append`` with its eight arguments, silently or not -> offset and epoch.
Append: TypeAlias = Callable[[Any, str, Sequence[Any], bool], Awaitable[tuple[int, str]]]

_TYPES = ("text", "bytea", "text", "bigint", "double precision", "text", "text", "text")


async def append_in(
    using: object, schema: str, arguments: Sequence[Any], is_silent: bool = False
) -> tuple[int, str]:
    """Call the database's ``append`` in the transaction of ``using``; return offset and epoch.

    :param schema: the schema's name as an identifier in SQL.
    :param is_silent: announce neither this publication nor later ones of the transaction.
    :raises TypeError: ``using`` is of no driver that is supported.
    """
    for cls in type(using).__mro__:
        append = _KNOWN.get((cls.__module__.partition(".")[0], cls.__name__))
        if append is not None:
            return await append(using, schema, arguments, is_silent)
    cls = type(using)
    raise TypeError(
        "Expected 'using' to be a connection of asyncpg, an AsyncConnection of psycopg, or an AsyncSession "
        f"or AsyncConnection of SQLAlchemy, but got {cls.__module__}.{cls.__qualname__}. "
        f"Other clients can run SELECT {schema}.publish(channel, data) themselves."
    )


def _sql(schema: str, placeholders: Sequence[str], is_silent: bool) -> str:
    channel, *others = (
        f"CAST({placeholder} AS {type_})" for placeholder, type_ in zip(placeholders, _TYPES, strict=True)
    )
    if not is_silent:
        return f'SELECT "offset", epoch FROM {schema}.append({", ".join([channel, *others])})'
    # The setting is made before the call, because an argument of the call depends on it.
    channel = f"CASE WHEN settings.silence IS NOT NULL THEN {channel} END"
    return (
        "WITH settings AS MATERIALIZED (SELECT set_config('hubbub.notify', 'off', true) AS silence) "
        'SELECT a."offset", a.epoch FROM settings '
        f"CROSS JOIN LATERAL {schema}.append({', '.join([channel, *others])}) AS a"
    )


async def _asyncpg(
    connection: Any, schema: str, arguments: Sequence[Any], is_silent: bool
) -> tuple[int, str]:
    row = await connection.fetchrow(
        _sql(schema, [f"${number}" for number in range(1, 9)], is_silent), *arguments
    )
    return row[0], row[1]


async def _psycopg(
    connection: Any, schema: str, arguments: Sequence[Any], is_silent: bool
) -> tuple[int, str]:
    from psycopg.rows import tuple_row

    # Not the row factory of the connection, which may turn a row into any object.
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_sql(schema, ["%s"] * 8, is_silent), arguments)
        row = await cursor.fetchone()
    return row[0], row[1]


async def _sqlalchemy(
    connection: Any, schema: str, arguments: Sequence[Any], is_silent: bool
) -> tuple[int, str]:
    from sqlalchemy import text

    if connection.dialect.name != "postgresql":
        raise TypeError(
            f"Expected 'using' to be connected to PostgreSQL, but got {connection.dialect.name}. "
            "Publish without 'using' after the commit."
        )
    names = [f"argument_{number}" for number in range(8)]
    # A colon in the schema's name begins no parameter.
    sql = _sql(schema.replace(":", "\\:"), [f":{name}" for name in names], is_silent)
    result = await connection.execute(text(sql), dict(zip(names, arguments, strict=True)))
    row = result.one()
    return row[0], row[1]


async def _sqlalchemy_session(
    session: Any, schema: str, arguments: Sequence[Any], is_silent: bool
) -> tuple[int, str]:
    return await _sqlalchemy(await session.connection(), schema, arguments, is_silent)


#: (package, class) -> how to call ``append``.
_KNOWN: dict[tuple[str, str], Append] = {
    ("asyncpg", "Connection"): _asyncpg,
    ("asyncpg", "PoolConnectionProxy"): _asyncpg,
    ("psycopg", "AsyncConnection"): _psycopg,
    ("sqlalchemy", "AsyncConnection"): _sqlalchemy,
    ("sqlalchemy", "AsyncSession"): _sqlalchemy_session,
    ("sqlalchemy", "async_scoped_session"): _sqlalchemy_session,
}
