"""A rotation: many items, each of which has its turn once in an interval, spread evenly over it.

A node that checked its 10,000 channels at one moment would do nothing else for a second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Rotation(Generic[T]):
    """Items in the order of their turns. A new item waits for its turn like all others."""

    def __init__(self) -> None:
        # The item whose turn was longest ago comes first.
        self._items: OrderedDict[T, None] = OrderedDict()
        self._last: float | None = None
        # Turns that have become due with time, a fraction of the next one included.
        self._due = 0.0

    def __contains__(self, item: T) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T) -> None:
        """Add ``item``, whose first turn comes within one interval."""
        self._items[item] = None

    def discard(self, item: T) -> None:
        """Remove ``item``, if it is in the rotation."""
        self._items.pop(item, None)

    def take(self, now: float, interval: float) -> list[T]:
        """Return the items whose turn it is by now.

        :param now: seconds that never go back.
        :param interval: seconds between two turns of an item.
        """
        count = len(self._items)
        elapsed = 0.0 if self._last is None else now - self._last
        self._last = now
        # No item has two turns, however long ago the last call was.
        self._due = min(self._due + count * elapsed / interval, count)
        items = []
        for _ in range(int(self._due)):
            item = next(iter(self._items))
            self._items.move_to_end(item)
            items.append(item)
        self._due -= len(items)
        return items
