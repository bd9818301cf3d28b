"""``memory://``: one process, nothing to install. Publications go straight to the feeds of this process."""

from hubbub.engines.memory.engine import MemoryEngine

__all__ = ["MemoryEngine"]
