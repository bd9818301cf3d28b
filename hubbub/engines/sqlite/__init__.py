"""``sqlite:///file.db``: several processes on one machine, nothing to install, and it outlives them all."""

from hubbub.engines.sqlite.engine import SQLiteEngine

__all__ = ["SQLiteEngine"]
