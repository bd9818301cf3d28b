"""Many items have their turns once in an interval, spread over it."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from hubbub.core.rotation import Rotation


def test_turns_are_spread_over_the_interval() -> None:
    rotation: Rotation[int] = Rotation()
    for item in range(10_000):
        rotation.add(item)
    assert rotation.take(0, 32) == []
    turns = [rotation.take(second, 32) for second in range(1, 33)]
    assert {len(items) for items in turns} == {312, 313}
    assert [item for items in turns for item in items] == list(range(10_000))


def test_a_single_item_has_its_turn_once_in_an_interval() -> None:
    rotation: Rotation[str] = Rotation()
    rotation.add("a")
    assert [second for second in range(100) if rotation.take(second, 32)] == [32, 64, 96]


def test_a_long_pause_is_one_turn_for_each() -> None:
    rotation: Rotation[str] = Rotation()
    rotation.add("a")
    rotation.add("b")
    rotation.take(0, 30)
    assert rotation.take(1000, 30) == ["a", "b"]
    assert rotation.take(1001, 30) == []


def test_an_item_that_is_discarded_has_no_turn() -> None:
    rotation: Rotation[str] = Rotation()
    rotation.add("a")
    rotation.discard("a")
    rotation.discard("never there")
    assert "a" not in rotation
    assert rotation.take(100, 30) == []


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0.1, 40)), min_size=1))
def test_nothing_waits_longer_than_an_interval_while_others_come(steps: list[tuple[int, float]]) -> None:
    rotation: Rotation[int] = Rotation()
    now, waiting = 0.0, Counter[int]()
    since: dict[int, float] = {}
    for count, seconds in steps:
        for _ in range(count):
            rotation.add(len(since))
            since[len(since)] = now
        rotation.take(now, 30)
        now += seconds
        for item in rotation.take(now, 30):
            waiting[item] += 1
            since[item] = now
        assert all(now - last <= 30 + seconds + 1e-6 for last in since.values())
