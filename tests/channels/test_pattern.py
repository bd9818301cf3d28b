"""Patterns of channel names: which names match, and which patterns are refused."""

from __future__ import annotations

from typing import Any

import pytest

from hubbub import Hub, InvalidChannel
from hubbub.channels.pattern import Pattern


def test_a_pattern_matches_names() -> None:
    for text, matching, others in (
        ("chat", ["chat"], ["chats", "chat:1", "Chat"]),
        (
            "room:{room_id}",
            ["room:1", "room:größe", "room:a.b"],
            ["room:", "room:1:2", "room:a/b", "xroom:1"],
        ),
        ("{a}/{b}", ["x/y"], ["x", "x/y/z", "/y"]),
        ("a.b", ["a.b"], ["axb"]),
        ("file:{path:path}", ["file:a", "file:a/b:c", "file:/"], ["file:", "files:a"]),
        ("{user}:{rest:path}", ["ann:a", "ann:a:b/c"], ["ann", "a/b:c", ":a"]),
        ("{rest:path}/end", ["a/end", "a/b/end", "end/end"], ["/end", "a/end/", "end"]),
    ):
        pattern = Pattern(text)
        assert [name for name in (*matching, *others) if pattern.matches(name)] == matching


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "",
            "room:{",
            "room:}",
            "room:{}",
            "room:{1}",
            "{a}:{a}",
            "{a{b}}",
            "{a:}",
            "{a:int}",
            "{a}:{a:path}",
        ),
        *("{a}{b}", "{a:path}:{b:path}", "line\nbreak", "{a}\x01", "x" * 256, 7, None),
    ],
)
def test_a_bad_pattern_is_refused(pattern: Any) -> None:
    with pytest.raises(InvalidChannel, match="Expected"):
        Pattern(pattern).check_names()
    with pytest.raises(InvalidChannel, match="Expected"):
        Hub().channel(pattern)


def test_a_mismatch_names_the_parameter() -> None:
    pattern = Pattern("{shop}:{order}")
    assert pattern.explain_mismatch("a:b:c").endswith("matches no ':'; use {shop:path}.")
    assert pattern.explain_mismatch("a:b/c").endswith("{order} matches no '/'; use {order:path}.")
    assert pattern.explain_mismatch("a/b:c/d") == ""
    assert pattern.explain_mismatch("chat") == ""
