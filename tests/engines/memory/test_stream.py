"""Pages of one stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from hubbub.core.history import History
from hubbub.core.publication import Position
from hubbub.engines.memory import MemoryEngine
from hubbub.engines.memory.stream import Stream
from hubbub.testing.engine_contract import publication
from tests.engines.memory.helpers import SHORT


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("since", [None, 0, 1, 899, 900, 901, 950, 999, 1000, 1001])
async def test_a_page_holds_the_publications_that_were_asked_for(
    engine: MemoryEngine, since: int | None, reverse: bool
) -> None:
    for _ in range(1000):
        top = await engine.publish(publication("chat", "x"), SHORT)
    after = None if since is None else Position(since, top.epoch)
    for limit in (None, 0, 1, 7, 1000):
        page = await engine.history("chat", after, limit, reverse)
        found = [each.offset for each in page.publications]
        offsets = range(901, 1001)
        if since is not None:
            offsets = range(901, min(1001, since)) if reverse else range(max(901, since + 1), 1001)
        assert found == list(reversed(offsets) if reverse else offsets)[:limit]


class Counting(deque[Any]):
    """Counts the publications that are iterated over."""

    examined = 0

    def __iter__(self) -> Iterator[Any]:
        for each in super().__iter__():
            self.examined += 1
            yield each


def test_a_page_of_a_long_history_takes_the_time_of_the_page_alone() -> None:
    stream = Stream(History(size=1000, ttl=10), "epoch")
    for _ in range(1000):
        stream.append(publication("chat", "x"), 0.0)
    stream.publications = counting = Counting(stream.publications)
    page = stream.read(Position(5, "epoch"), 10, False)
    assert [each.offset for each in page] == [*range(6, 16)]
    assert counting.examined < 100
