"""The clock of the file, and a machine's clock that is set back."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from hubbub.core.history import History
from hubbub.core.publication import Position
from hubbub.engines.base import PresenceChange
from hubbub.engines.sqlite.store import Store
from hubbub.testing.engine_contract import HISTORY, publication
from tests.clock import FakeClock
from tests.engines.sqlite.helpers import rows


def test_a_machine_clock_that_was_ahead_extends_no_ttl(path: Path) -> None:
    clock, jump = FakeClock(1_000_000.0), 86_400.0
    short, store = History(size=10, ttl=100), Store(str(path), "hubbub", clock)
    with closing(store):

        def published(text: str, key: str) -> Position:
            with store.transaction():
                return store.publish(publication("chat", text), short, key, store.clock.tick())

        def kept() -> list[bytes]:
            return [
                each.data for each in store.history("chat", None, None, False, store.clock.now()).publications
            ]

        clock.advance(jump)
        published("1", "key")
        with store.transaction():
            entered = [PresenceChange("chat", "a", b"")]
            assert store.presence.update("lease", 100, entered, True, store.clock.tick())
        clock.advance(-jump)
        # Another process, which was not there before the jump.
        store.close()
        store = Store(str(path), "hubbub", clock)
        # The key and the publication of just now expire counted from now on.
        assert published("1", "key").offset == 1
        assert kept() == [b"1"]
        clock.advance(60)
        published("2", "other key")
        clock.advance(50)
        assert kept() == [b"2"]
        with store.transaction():
            assert store.presence.expire(store.clock.tick()) == [PresenceChange("chat", "a", None)]
        clock.advance(200)
        assert published("1", "key").offset == 3
        clock.advance(101)
        assert store.pruner.is_due(store.clock.now())
        with store.transaction():
            store.pruner.prune(store.clock.tick())
        assert rows(path, "SELECT offset FROM hubbub_publications") == []


def test_clients_receive_the_time_of_the_machine(path: Path) -> None:
    clock = FakeClock()
    with closing(Store(str(path), "hubbub", clock)) as store:
        for now in (2_000_000.0, 1_000_000.0, 1_000_001.0):
            clock.advance(now - clock())
            with store.transaction():
                store.publish(publication("chat", "1"), HISTORY, None, store.clock.tick())
        page = store.history("chat", None, None, False, store.clock.now())
        assert [each.time for each in page.publications] == [2_000_000.0, 1_000_000.0, 1_000_001.0]
