"""Counters of refusals: a fixed set of reasons."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from hubbub.codes import CloseCode, ErrorCode
from hubbub.node.refusals import Refusals
from hubbub.types import Refusal


def test_every_reason_is_there_from_the_beginning() -> None:
    assert Refusals().counts() == dict.fromkeys(get_args(Refusal), 0)


def test_a_refusal_is_counted_for_its_reason_only() -> None:
    refusals = Refusals()
    before = refusals.counts()
    refusals.count("origin")
    refusals.count("origin")
    assert refusals.counts() == {**before, "origin": 2}
    # A count that was returned does not change any more.
    assert before["origin"] == 0


def test_there_are_no_other_reasons() -> None:
    refusals, wrong = Refusals(), "because"
    reason: Any = wrong
    with pytest.raises(KeyError):
        refusals.count(reason)
    assert wrong not in refusals.counts()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (401, "unauthorized"),
        (403, "forbidden"),
        (404, "unknown_channel"),
        (405, "bad_request"),
        (413, "message_size"),
        (415, "bad_request"),
        (422, "bad_request"),
        (429, "rate_limit"),
        (ErrorCode.UNAUTHORIZED, "unauthorized"),
        (ErrorCode.UNKNOWN_CHANNEL, "unknown_channel"),
        (ErrorCode.PERMISSION_DENIED, "forbidden"),
        (ErrorCode.METHOD_NOT_FOUND, "bad_request"),
        (ErrorCode.BAD_REQUEST, "bad_request"),
        (ErrorCode.TOO_MANY_REQUESTS, "rate_limit"),
        (CloseCode.INVALID_TOKEN, "unauthorized"),
        (CloseCode.TOKEN_EXPIRED, "expired"),
        (CloseCode.PERMISSION_DENIED, "forbidden"),
    ],
)
def test_a_code_of_the_application_has_a_reason(code: int, reason: str) -> None:
    refusals = Refusals()
    refusals.count_code(code)
    assert {name for name, count in refusals.counts().items() if count} == {reason}


@pytest.mark.parametrize("code", [100, 200, 409, 418, 500, 503, 1000, 1012, 4000, -1])
def test_other_codes_are_not_counted(code: int) -> None:
    refusals = Refusals()
    refusals.count_code(code)
    assert not any(refusals.counts().values())
