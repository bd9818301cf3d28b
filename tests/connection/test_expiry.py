"""The expiry of a connection, by the calendar."""

from __future__ import annotations

import pytest

from hubbub.connection.expiry import NOTICE, Expiry

END = 1_800_000_000.0


@pytest.mark.parametrize(
    ("left", "seconds"),
    [(25.5, None), (25.0, 25), (24.2, 25), (24.0, 24), (1.0, 1), (0.01, 1), (0.0, None), (-5.0, None)],
)
def test_the_notice_is_due_in_the_last_25_seconds(left: float, seconds: int | None) -> None:
    notices: list[int] = []
    expiry = Expiry(END, notices.append)
    assert expiry.check(END - left) is (left <= 0)
    assert notices == ([] if seconds is None else [seconds])


def test_the_notice_is_given_once_even_if_the_clock_is_set_back() -> None:
    notices: list[int] = []
    expiry = Expiry(END, notices.append)
    for now in (END - 30, END - NOTICE, END - 24, END - 3600, END - 25, END - 1):
        assert not expiry.check(now)
    assert notices == [25]
    assert expiry.check(END)


def test_after_the_machine_has_slept_it_has_expired_without_a_notice() -> None:
    notices: list[int] = []
    expiry = Expiry(END, notices.append)
    assert not expiry.check(END - 3600)
    assert expiry.check(END + 3600)
    assert notices == []


def test_without_a_receiver_of_the_notice_it_only_expires() -> None:
    expiry = Expiry(END)
    assert not expiry.check(END - 1)
    assert expiry.check(END)


def test_a_notice_that_fails_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(seconds: int) -> None:
        raise OSError("broken")

    expiry = Expiry(END, fail)
    assert not expiry.check(END - 10)
    assert not expiry.check(END - 9)
    assert caplog.messages == ["Could not notify a client of its expiry."]
    assert expiry.check(END)
