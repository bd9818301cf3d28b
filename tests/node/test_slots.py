"""Slots: the limits on the connections of a process and of one user."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from hubbub import Hub
from hubbub.node.refusals import Refusals
from hubbub.node.slots import Capacity, Slot, Slots


class Rig:
    def __init__(self, connections: int | None = None, user_connections: int | None = None) -> None:
        self.refusals = Refusals()
        self.slots = Slots(Capacity(connections, user_connections), self.refusals)

    def take(self, user: str | None = None) -> Slot:
        slot = self.slots.take()
        slot.claim_user(user)
        return slot

    @property
    def refused(self) -> dict[str, int]:
        return {reason: count for reason, count in self.refusals.counts().items() if count}


def status(exc: HTTPException) -> tuple[int, Any]:
    return exc.status_code, exc.headers


def test_a_full_process_refuses_with_503_and_says_when_to_try_again() -> None:
    rig = Rig(connections=2)
    first, _ = rig.take(), rig.take()
    for _ in range(3):
        with pytest.raises(HTTPException) as refused:
            rig.take()
        assert status(refused.value) == (503, {"Retry-After": "5"})
    assert rig.refused == {"connections": 3}
    first.release()
    rig.take()
    assert len(rig.slots) == 2


def test_a_user_with_all_of_its_connections_is_refused_with_429() -> None:
    rig = Rig(user_connections=2)
    first, _ = rig.take("ann"), rig.take("ann")
    slot = rig.slots.take()
    with pytest.raises(HTTPException) as refused:
        slot.claim_user("ann")
    assert status(refused.value) == (429, None)
    assert rig.refused == {"user_connections": 1}
    slot.claim_user("bob")
    first.release()
    rig.take("ann")


@pytest.mark.parametrize("user", [None, ""])
def test_connections_without_a_user_are_not_counted_for_one(user: str | None) -> None:
    rig = Rig(user_connections=1)
    for _ in range(5):
        rig.take(user)
    assert len(rig.slots) == 5
    assert rig.refused == {}


def test_none_is_no_limit() -> None:
    rig = Rig()
    for _ in range(500):
        rig.take("ann")
    assert len(rig.slots) == 500


def test_a_slot_is_released_once() -> None:
    rig = Rig(connections=2, user_connections=1)
    slot, other = rig.take("ann"), rig.take("bob")
    slot.release()
    slot.release()
    assert len(rig.slots) == 1
    again = rig.take("ann")
    slot.claim_user("ann")
    slot.release()
    with pytest.raises(HTTPException):
        rig.take()
    other.release()
    again.release()
    assert len(rig.slots) == 0


def test_another_user_takes_the_place_of_the_first() -> None:
    rig = Rig(user_connections=1)
    slot = rig.take("ann")
    slot.claim_user("bob")
    rig.take("ann")
    with pytest.raises(HTTPException):
        slot.claim_user("ann")
    # It is still bob's.
    with pytest.raises(HTTPException):
        rig.take("bob")
    slot.claim_user("bob")
    slot.claim_user(None)
    rig.take("bob")


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "claim", "release"]), st.integers(0, 5), st.sampled_from("abc"))
    )
)
def test_counts_are_those_of_the_slots_that_are_held(steps: list[tuple[str, int, str]]) -> None:
    rig = Rig(connections=4, user_connections=2)
    held: dict[int, tuple[Slot, str | None]] = {}
    for step, number, user in steps:
        if step == "take" and number not in held:
            try:
                held[number] = (rig.slots.take(), None)
            except HTTPException:
                assert len(held) == 4
        elif step == "claim" and number in held:
            slot, before = held[number]
            others = sum(other == user for _, other in held.values())
            try:
                slot.claim_user(user)
            except HTTPException:
                assert others == 2
                assert before != user
            else:
                assert others < 2 or before == user
                held[number] = (slot, user)
        elif step == "release" and number in held:
            held.pop(number)[0].release()
        assert len(rig.slots) == len(held)


def test_many_refusals_are_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(connections=1, user_connections=1)
    slot = rig.take("ann\n\x1b[2J")
    for _ in range(10):
        with pytest.raises(HTTPException):
            rig.take()
    slot.release()
    rig.take("ann\n\x1b[2J")
    other = Rig(connections=2, user_connections=1)
    other.take("ann\n\x1b[2J")
    with pytest.raises(HTTPException):
        other.take("ann\n\x1b[2J")
    full, user_full = [record.getMessage() for record in caplog.records]
    assert "this process has 1, as many as Hub(max_connections=…)" in full
    assert "of user 'ann\\n\\x1b[2J' with 429" in user_full
    assert "Hub(max_user_connections=…)" in user_full
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.parametrize("name", ["max_connections", "max_user_connections", "max_message_rate"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "to be greater than 0, but got 0"),
        (-1, ValueError, "to be greater than 0, but got -1"),
        (1.5, TypeError, "as int, but got 1.5"),
        (True, TypeError, "as int, but got True"),
        ("100", TypeError, "as int, but got '100'"),
    ],
)
def test_wrong_limits_are_refused_at_once(
    name: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"Expected {name} {message}"):
        Hub(**{name: value})


def test_a_hub_may_be_without_limits() -> None:
    Hub(max_connections=None, max_user_connections=None, max_message_rate=None)
