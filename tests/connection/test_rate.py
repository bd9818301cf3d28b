"""Rate: a token bucket, with a clock that stands still."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.connection.rate import TokenBucket
from tests.clock import FakeClock


def taken(bucket: TokenBucket, tries: int) -> int:
    return sum(bucket.take() == 0 for _ in range(tries))


# Far from 0, as a machine that has been up for years: additions are inexact.
@pytest.mark.parametrize("start", [0.0, 1e9 / 3])
@pytest.mark.parametrize(("rate", "burst"), [(100, 100), (10, 10), (1 / 3, 3), (0.1, 1), (7, 50)])
def test_a_burst_is_free_and_then_the_rate_counts(rate: float, burst: int, start: float) -> None:
    clock = FakeClock(start)
    bucket = TokenBucket(rate, burst, clock)
    assert taken(bucket, burst + 5) == burst
    for _ in range(20):
        clock.advance(1.001 / rate)
        assert taken(bucket, 3) == 1


def test_a_refusal_says_when_the_next_token_comes_and_costs_none() -> None:
    clock = FakeClock(1000.0)
    bucket = TokenBucket(2, 1, clock)
    assert bucket.take() == 0
    for _ in range(3):
        assert bucket.take() == pytest.approx(0.5)
    clock.advance(0.4)
    assert bucket.take() == pytest.approx(0.1)
    clock.advance(0.1)
    assert bucket.take() == 0


def test_a_bucket_holds_no_more_than_a_burst() -> None:
    clock = FakeClock()
    bucket = TokenBucket(100, 5, clock)
    clock.advance(3600)
    assert taken(bucket, 10) == 5


def test_a_bucket_is_full_again_after_a_while() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10, 5, clock)
    assert bucket.is_full
    taken(bucket, 5)
    assert not bucket.is_full
    clock.advance(0.49)
    assert not bucket.is_full
    clock.advance(0.02)
    assert bucket.is_full


@given(
    st.integers(1, 100),
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 30)), max_size=30),
)
def test_no_more_pass_than_a_burst_and_what_the_time_allows(
    rate: int, burst: int, steps: list[tuple[float, int]]
) -> None:
    clock = FakeClock()
    bucket = TokenBucket(rate, burst, clock)
    passed = 0
    for seconds, tries in steps:
        clock.advance(seconds)
        passed += taken(bucket, tries)
        assert passed <= burst + clock.time() * rate + 1e-3
