"""The parts that all engines share: pieces of lists, sinks that fail, the check that an engine is started."""

from __future__ import annotations

import logging

import pytest

from hubbub.engines.base import batched, hand_over, notify
from hubbub.engines.memory import MemoryEngine
from hubbub.exceptions import HubNotRunning
from hubbub.testing.engine_contract import Collector, publication


@pytest.mark.parametrize(
    ("count", "pieces"),
    [(0, []), (1, [[0]]), (3, [[0, 1, 2]]), (4, [[0, 1, 2], [3]]), (7, [[0, 1, 2], [3, 4, 5], [6]])],
)
def test_a_list_is_cut_into_pieces_of_which_the_last_may_be_smaller(
    count: int, pieces: list[list[int]]
) -> None:
    assert list(batched(list(range(count)), 3)) == pieces


class FailingSink(Collector):
    def on_publication(self, publication: object) -> None:
        raise LookupError("a sink that fails")

    def on_disconnect(self, reason: str) -> None:
        raise LookupError("a sink that fails")


def test_an_exception_of_a_sink_is_logged_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    sink = FailingSink()
    hand_over(sink, publication("chat", "hello"))
    notify(sink.on_disconnect, "a reason")
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("hubbub.engines.base", logging.ERROR)
    ] * 2
    assert "'chat'" in caplog.records[0].getMessage()


async def test_an_engine_says_that_it_is_not_started_before_and_after() -> None:
    engine = MemoryEngine("memory://")
    with pytest.raises(HubNotRunning, match="has not been started"):
        await engine.publish(publication("chat", "early"))
    await engine.start(Collector())
    await engine.publish(publication("chat", "in time"))
    await engine.stop()
    with pytest.raises(HubNotRunning, match="has not been started"):
        await engine.publish(publication("chat", "late"))
