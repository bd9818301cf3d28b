"""A disk that is full or broken, as SQLite sees it."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest


class Disk:
    """Connections to SQLite that are opened from now on behave as on this disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        #: The pages that fit, of 4 KiB; ``None`` for as many as SQLite allows.
        self.pages: int | None = None
        #: The bytes of the longest value that SQLite takes.
        self.longest_value = 1_000_000_000
        #: Statements that begin like this fail with an error of the disk.
        self.broken = ""
        disk, connect = self, sqlite3.connect

        class Connection(sqlite3.Connection):
            _pages: int | None = None

            def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
                if disk.pages != self._pages:
                    self._pages = disk.pages
                    super().execute(f"PRAGMA max_page_count = {disk.pages or 2**31}")
                if disk.broken and statement.startswith(disk.broken):
                    raise sqlite3.OperationalError("disk I/O error")
                return super().execute(statement, *values)

        def connect_to_disk(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **options, factory=Connection)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, disk.longest_value)
            return connection

        monkeypatch.setattr(sqlite3, "connect", connect_to_disk)
