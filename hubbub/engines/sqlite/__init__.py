"""``sqlite:///file.db``: several processes of one machine, nothing to install; the file outlives them."""

from hubbub.engines.sqlite.engine import SQLiteEngine

__all__ = ["SQLiteEngine"]
