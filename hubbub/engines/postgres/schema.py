"""The schema of the database: created if there is none, and upgraded if it is of an earlier version.

``sql/1.sql`` creates the tables of version 1, ``sql/2.sql`` makes the changes of version 2, and so on. After
the last of them, ``sql/functions.sql`` creates or replaces all functions. All of this is one transaction; of
several workers that start at the same time, one makes it.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TypeAlias

import asyncpg

from hubbub.core.history import History
from hubbub.engines.base import IDEMPOTENCY_WINDOW, STREAM_TTL
from hubbub.engines.postgres.address import Address
from hubbub.exceptions import EngineUnavailable

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

#: The version of the schema that this version of Hubbub uses.
VERSION = 4

#: Seconds that a publication to a channel without history is kept after its transaction, for nodes to read.
HANDOVER = 60.0

#: The name of a schema, and of the notifications. PostgreSQL truncates longer names.
_NAMESPACE = re.compile(r"(?!pg_)[A-Za-z0-9_.:-]{1,63}")

_FIND = """
SELECT current_user AS user, current_database() AS database,
    EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1) AS has_schema,
    EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = 'state') AS has_tables
"""

# Version 1 could be used by version 1 alone, and had no column that says so.
_STATE = """
SELECT version, id, coalesce((to_jsonb(s) ->> 'usable_from')::integer, version) AS usable_from
FROM {schema}.state s
"""


class Schema:
    """The schema of a namespace.

    :param namespace: its name.
    :param address: the address of the database, for messages.
    :raises ValueError: no schema can have that name.
    """

    def __init__(self, namespace: str, address: Address) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise ValueError(
                "Expected a namespace of 1 to 63 letters, digits or any of '_.:-' that does not begin with "
                f"'pg_', but got {namespace!r}."
            )
        self.namespace = namespace
        self._address = address
        #: The schema's name as an identifier in SQL.
        self.quoted = _quoted(namespace)

    def sql(self, template: str) -> str:
        """Return ``template`` with the schema's name for ``{schema}``."""
        return template.replace("{schema}", self.quoted)

    async def install(self, connection: Connection) -> str:
        """Create or upgrade the schema where that is necessary.

        :return: the id of the installation, which is another one after the schema was dropped and created
            again.
        :raises EngineUnavailable: that is not possible, or the schema is of a newer version that this version
            of Hubbub cannot use.
        """
        if connection.get_server_version().major < 13:
            raise self._address.unavailable("it is older than PostgreSQL 13.")
        # Read before the transaction that changes it: a worker that waits for the lock has locked nothing.
        state = await self._state(connection)
        if state is None or state["version"] < VERSION:
            async with connection.transaction():
                await connection.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended('hubbub install ' || $1, 0))",
                    self.namespace,
                )
                # Another worker may have done it meanwhile.
                state = await self._state(connection)
                if state is None or state["version"] < VERSION:
                    await self._upgrade(connection, 0 if state is None else state["version"])
                    state = await self._state(connection)
        assert state is not None
        if state["usable_from"] > VERSION:
            raise self._address.unavailable(
                f"the schema {self.namespace!r} is of version {state['version']}, but this version of "
                f"Hubbub knows {VERSION}. Upgrade Hubbub here, or give this hub another namespace."
            )
        return str(state["id"])

    # Internal

    async def _state(self, connection: Connection) -> asyncpg.Record | None:
        """Return the schema's version and id; ``None`` if there are no tables."""
        # A statement with parameters is prepared and run in two steps. Between them a pooler may change the
        # connection to the server, except within a transaction.
        async with connection.transaction():
            found = await self._find(connection)
            if not found["has_tables"]:
                return None
            state = await connection.fetchrow(self.sql(_STATE))
        if state is None:
            raise self._address.unavailable(
                f"the table {self.quoted}.state is empty. Drop the schema {self.namespace!r}, or give this "
                "hub another namespace."
            )
        return state

    async def _find(self, connection: Connection) -> asyncpg.Record:
        found = await connection.fetchrow(_FIND, self.namespace)
        assert found is not None
        return found

    async def _upgrade(self, connection: Connection, version: int) -> None:
        """Run the steps after ``version``, which is 0 if there are no tables."""
        found = await self._find(connection)
        try:
            if not found["has_schema"]:
                await connection.execute(self.sql("CREATE SCHEMA {schema}"))
            for step in range(version + 1, VERSION + 1):
                await connection.execute(self._script(f"{step}.sql"))
            await connection.execute(self._script("functions.sql"))
        except asyncpg.InsufficientPrivilegeError as exc:
            raise self._forbidden(found, version, exc) from exc

    def _forbidden(self, found: asyncpg.Record, version: int, exc: Exception) -> EngineUnavailable:
        user, database = found["user"], found["database"]
        if version > 0:
            return self._address.unavailable(
                f"{user} may not upgrade the schema {self.namespace!r} from version {version} to {VERSION} "
                f"({exc}). Start Hubbub here once as the schema's owner."
            )
        return self._address.unavailable(
            f"{user} may not create the schema {self.namespace!r} ({exc}). As a user with that right, "
            f"run: CREATE SCHEMA {self.quoted} AUTHORIZATION {_quoted(user)}; "
            f"or: GRANT CREATE ON DATABASE {_quoted(database)} TO {_quoted(user)};"
        )

    def _script(self, name: str) -> str:
        sql = self.sql((files(__package__) / "sql" / name).read_text("utf-8"))
        defaults = History()
        for parameter, value in {
            "name": f"'{self.namespace}'",
            "handover": HANDOVER,
            "window": IDEMPOTENCY_WINDOW,
            "stream_ttl": STREAM_TTL,
            "default_size": defaults.size,
            "default_ttl": defaults.ttl,
        }.items():
            sql = sql.replace(f"{{{parameter}}}", str(value))
        return sql


def _quoted(name: str) -> str:
    """Return ``name`` as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'
