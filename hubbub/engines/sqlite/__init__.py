"""``sqlite:///file.db``: several processes of one machine, nothing to install, and a file that outlives them."""

from hubbub.engines.sqlite.engine import SQLiteEngine

__all__ = ["SQLiteEngine"]
