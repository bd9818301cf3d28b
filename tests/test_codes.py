from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hubbub.codes import MAX_REASON_BYTES, CloseCode, clip_reason, is_sendable

#: Codes that an endpoint may send, from RFC 6455, section 7.4, and the IANA registry of close codes.
SENDABLE = {
    1000,  # normal closure
    1001,  # going away
    1002,  # protocol error
    1003,  # unsupported data
    1007,  # invalid payload data
    1008,  # policy violation
    1009,  # message too big
    1010,  # mandatory extension
    1011,  # internal error
    1012,  # service restart
    1013,  # try again later
    1014,  # bad gateway
    *range(3000, 4000),  # registered by libraries and frameworks
    *range(4000, 5000),  # private use
}


def test_the_codes_that_may_be_sent_are_those_of_the_rfc() -> None:
    assert {code for code in range(-1, 5001) if is_sendable(code)} == SENDABLE


def test_every_close_code_may_be_sent_except_the_one_that_is_only_reported() -> None:
    assert {code for code in CloseCode if not is_sendable(code)} == {CloseCode.ABNORMAL}


def test_a_reason_has_the_room_that_a_control_frame_leaves() -> None:
    # RFC 6455, section 5.5: 125 bytes of payload; section 5.5.1: two of them are the code.
    assert MAX_REASON_BYTES == 125 - 2


def test_a_reason_that_fits_is_left_as_it_is() -> None:
    assert clip_reason("") == ""
    assert clip_reason("x" * 123) == "x" * 123
    assert clip_reason("é" * 61) == "é" * 61


def test_a_reason_is_cut_between_characters() -> None:
    assert clip_reason("x" * 124) == "x" * 123
    assert clip_reason("é" * 62) == "é" * 61
    assert clip_reason("x" + "🎉" * 31) == "x" + "🎉" * 30


def test_a_lone_surrogate_in_a_reason_becomes_a_question_mark() -> None:
    assert clip_reason("what \ud800 is this") == "what ? is this"


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_a_clipped_reason_is_the_longest_beginning_that_fits(reason: str) -> None:
    clipped = clip_reason(reason)
    assert reason.startswith(clipped)
    assert len(clipped.encode()) <= 123
    one_more = reason[: len(clipped) + 1]
    assert one_more == clipped or len(one_more.encode()) > 123


@given(st.text(max_size=200))
def test_a_clipped_reason_always_fits(reason: str) -> None:
    assert len(clip_reason(reason).encode()) <= 123
