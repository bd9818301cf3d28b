"""The schema in which everything is: made if there is none, and brought to our version if it is older.

``sql/1.sql`` makes the tables of version 1, ``sql/2.sql`` what version 2 changes about them, and so on. After
the last of them, ``sql/functions.sql`` makes all functions, or replaces them. It is one transaction, and of
several workers that start at once, one does it.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TypeAlias

import asyncpg

from hubbub.core.history import History
from hubbub.engines.base import IDEMPOTENCY_WINDOW
from hubbub.engines.postgres.address import Address
from hubbub.exceptions import EngineUnavailable

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

#: The version that we know.
VERSION = 3

#: Seconds that a publication to a channel without history is kept after its transaction, to be handed over.
HANDOVER = 60.0

#: Seconds that a stream is remembered after its last publication is gone. After that it begins anew.
STREAM_TTL = 3600.0

#: The name of a schema, and of what one listens to. PostgreSQL would cut off what is longer.
_NAMESPACE = re.compile(r"(?!pg_)[A-Za-z0-9_.:-]{1,63}")

_FIND = """
SELECT current_user AS user, current_database() AS database,
    EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1) AS has_schema,
    EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = 'state') AS has_tables
"""

# Version 1 could be used by nothing but itself, and had no column to say so.
_STATE = """
SELECT version, id, coalesce((to_jsonb(s) ->> 'usable_from')::integer, version) AS usable_from
FROM {schema}.state s
"""


class Schema:
    """The schema of a namespace.

    :param namespace: its name.
    :param address: of the database, for messages.
    :raises ValueError: no schema can have that name.
    """

    def __init__(self, namespace: str, address: Address) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise ValueError(
                "Expected a namespace of 1 to 63 letters, digits or any of '_.:-' that does not begin with "
                f"'pg_', but got {namespace!r}."
            )
        self._namespace = namespace
        self._address = address
        #: Its name as an identifier in SQL.
        self.quoted = _quoted(namespace)

    def sql(self, template: str) -> str:
        """``template`` with the schema's name for ``{schema}``."""
        return template.replace("{schema}", self.quoted)

    async def install(self, connection: Connection) -> str:
        """Have everything there, in a version that we can use.

        :return: the id of the installation, which is another one after the schema was dropped and made again.
        :raises EngineUnavailable: that cannot be done, or the version is newer and not for us.
        """
        if connection.get_server_version().major < 13:
            raise self._address.unavailable("it is older than PostgreSQL 13.")
        # Not within the transaction that changes it: whoever waits for the lock has nothing locked.
        state = await self._state(connection)
        if state is None or state["version"] < VERSION:
            async with connection.transaction():
                await connection.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended('hubbub install ' || $1, 0))",
                    self._namespace,
                )
                # Somebody else may have done it meanwhile.
                state = await self._state(connection)
                if state is None or state["version"] < VERSION:
                    await self._upgrade(connection, 0 if state is None else state["version"])
                    state = await self._state(connection)
        assert state is not None
        if state["usable_from"] > VERSION:
            raise self._address.unavailable(
                f"the schema {self._namespace!r} is of version {state['version']}, but this version of "
                f"Hubbub knows {VERSION}. Upgrade Hubbub here, or give this hub another namespace."
            )
        return str(state["id"])

    # Inside

    async def _state(self, connection: Connection) -> asyncpg.Record | None:
        """The version that is there, or ``None`` if there is nothing."""
        # A statement with parameters is prepared and run in two steps. Between them a pooler may give us
        # another connection, except within a transaction.
        async with connection.transaction():
            found = await self._find(connection)
            if not found["has_tables"]:
                return None
            state = await connection.fetchrow(self.sql(_STATE))
        if state is None:
            raise self._address.unavailable(
                f"the table {self.quoted}.state is empty. Drop the schema {self._namespace!r}, or give this "
                "hub another namespace."
            )
        return state

    async def _find(self, connection: Connection) -> asyncpg.Record:
        found = await connection.fetchrow(_FIND, self._namespace)
        assert found is not None
        return found

    async def _upgrade(self, connection: Connection, version: int) -> None:
        """Take the steps from ``version``, which is 0 if there is nothing."""
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
                f"{user} may not bring the schema {self._namespace!r} from version {version} to {VERSION} "
                f"({exc}). Start Hubbub here once as the schema's owner."
            )
        return self._address.unavailable(
            f"{user} may not make the schema {self._namespace!r} ({exc}). As somebody who may, "
            f"run: CREATE SCHEMA {self.quoted} AUTHORIZATION {_quoted(user)}; "
            f"or: GRANT CREATE ON DATABASE {_quoted(database)} TO {_quoted(user)};"
        )

    def _script(self, name: str) -> str:
        sql = self.sql((files(__package__) / "sql" / name).read_text("utf-8"))
        defaults = History()
        for parameter, value in {
            "name": f"'{self._namespace}'",
            "handover": HANDOVER,
            "window": IDEMPOTENCY_WINDOW,
            "stream_ttl": STREAM_TTL,
            "default_size": defaults.size,
            "default_ttl": defaults.ttl,
        }.items():
            sql = sql.replace(f"{{{parameter}}}", str(value))
        return sql


def _quoted(name: str) -> str:
    """``name`` as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'
