"""The tables of a file: created if there are none, and upgraded if they are of an earlier version."""

from __future__ import annotations

import sqlite3
from importlib.resources import files

#: The version of the tables, which is in ``PRAGMA user_version``, and the statements that lead to each
#: version from the one before it.
VERSION = 3
STEPS = {
    version: (files(__package__) / "sql" / f"{version}.sql").read_text("utf-8").split(";")
    for version in range(1, VERSION + 1)
}


class Unusable(Exception):
    """The file cannot be used; the text is a phrase that says why."""


def upgrade(connection: sqlite3.Connection) -> None:
    """Create or upgrade the tables; within a transaction.

    Older processes that have the file open can still use it: they read the version only when they open it.

    :raises Unusable: the tables are of a newer version, or not ours.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= VERSION:
        raise Unusable(
            f"it has schema version {version}, but this version of Hubbub knows {VERSION} and earlier ones. "
            "It belongs to a newer version of Hubbub, or to another program"
        )
    for step in range(version + 1, VERSION + 1):
        for statement in STEPS[step]:
            connection.execute(statement)
    # Also if it has this version already: SQLite does not report that a file is read-only before a write.
    connection.execute(f"PRAGMA user_version = {VERSION}")
