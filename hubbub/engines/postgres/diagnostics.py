"""Diagnostics of a PostgreSQL server, for ``hubbub doctor``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hubbub.engines.diagnostics import Diagnosis
from hubbub.engines.postgres.address import Address

_QUESTION = """
SELECT current_setting('server_version') AS version,
    current_setting('server_version_num')::integer AS number,
    current_setting('server_encoding') AS encoding,
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('max_connections')::integer AS max_connections,
    current_setting('superuser_reserved_connections')::integer AS reserved,
    (SELECT sum(numbackends)::integer FROM pg_catalog.pg_stat_database) AS connections,
    pg_catalog.pg_is_in_recovery() AS is_standby,
    current_user AS user,
    pg_catalog.pg_get_userbyid(n.nspowner) AS owner,
    pg_catalog.pg_has_role(n.nspowner, 'USAGE') AS is_owner,
    (SELECT string_agg(c.relname, ', ' ORDER BY c.relname) FROM pg_catalog.pg_class c
        WHERE c.relnamespace = n.oid AND c.relkind = 'r' AND EXISTS (
            SELECT FROM unnest('{SELECT, INSERT, UPDATE, DELETE}'::text[]) AS needed
            WHERE NOT pg_catalog.has_table_privilege(c.oid, needed)
        )) AS forbidden
FROM pg_catalog.pg_namespace n WHERE n.nspname = $1
"""


async def inspect(connection: Any, namespace: str, address: Address) -> Sequence[Diagnosis]:
    """Examine the server.

    :param connection: a connection of asyncpg.
    """
    row = await connection.fetchrow(_QUESTION, namespace)
    return [
        *_version(row),
        _notifications(address.notify),
        *_rights(row, namespace),
        *_durability(row),
        *_connections(row, address.pool_size),
    ]


def _version(row: Any) -> Iterator[Diagnosis]:
    is_ok = row["number"] >= 130_000
    yield Diagnosis(is_ok, f"PostgreSQL {row['version']}", "" if is_ok else "Use PostgreSQL 13 or newer.")
    if row["encoding"] != "UTF8":
        yield Diagnosis(
            False,
            f"the database is encoded in {row['encoding']}, which cannot represent all channel names",
            "Create the database with: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
        )
    if row["is_standby"]:
        yield Diagnosis(False, "the server is a standby, which is read-only", "Give the URL of the primary.")


def _notifications(notify: bool) -> Diagnosis:
    if notify:
        return Diagnosis(True, "notifications arrive (LISTEN)")
    return Diagnosis(True, "publications are polled for, without notifications (notify=off)")


def _rights(row: Any, namespace: str) -> Iterator[Diagnosis]:
    quoted = f'"{namespace}"'
    if row["forbidden"]:
        yield Diagnosis(
            False,
            f"{row['user']} may not use all tables of the schema {namespace!r}: {row['forbidden']}",
            f'As {row["owner"]}: GRANT ALL ON ALL TABLES IN SCHEMA {quoted} TO "{row["user"]}"; '
            f'GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {quoted} TO "{row["user"]}";',
        )
    elif row["is_owner"]:
        yield Diagnosis(True, f"{row['user']} owns the schema {namespace!r}")
    else:
        yield Diagnosis(True, f"{row['user']} may use the schema {namespace!r}, which is {row['owner']}'s")


def _durability(row: Any) -> Iterator[Diagnosis]:
    off = [name for name in ("fsync", "full_page_writes") if row[name] == "off"]
    if off:
        yield Diagnosis(
            False,
            f"a crash of the machine may destroy the database ({' and '.join(off)} off)",
            "; ".join(f"ALTER SYSTEM SET {name} = on" for name in off),
        )
    elif row["synchronous_commit"] == "off":
        yield Diagnosis(
            True,
            "a crash of the server loses the last publications (synchronous_commit off)",
            "Clients are notified of such a loss. To lose nothing: ALTER SYSTEM SET synchronous_commit = on",
        )
    else:
        yield Diagnosis(True, f"a crash loses nothing (synchronous_commit {row['synchronous_commit']})")


def _connections(row: Any, pool_size: int) -> Iterator[Diagnosis]:
    taken, most = row["connections"], row["max_connections"] - row["reserved"]
    # With room for one more process.
    is_ok = taken + pool_size + 1 <= most
    yield Diagnosis(
        is_ok,
        f"{taken} of {most} connections are taken; each process of an app takes up to {pool_size + 1}",
        "" if is_ok else "Raise max_connections, or add '?pool_size=2' to the URL.",
    )
