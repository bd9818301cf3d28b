from __future__ import annotations

from hubbub.core.throttle import Throttle


def test_one_event_per_interval_is_admitted_and_the_others_are_counted() -> None:
    now = 0.0
    throttle = Throttle(10, clock=lambda: now)
    assert throttle.admit() == ""
    assert throttle.admit() is None
    now = 9.9
    assert throttle.admit() is None
    assert throttle.admit() is None
    now = 10.0
    assert throttle.admit() == " (3 more since the last such line.)"
    assert throttle.admit() is None
    now = 20.0
    assert throttle.admit() == " (1 more since the last such line.)"
    now = 40.0
    assert throttle.admit() == ""
