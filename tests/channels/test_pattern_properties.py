"""Comparing patterns: what is said of two patterns is true of the names that match them."""

from __future__ import annotations

import re
from itertools import product

from hypothesis import example, given
from hypothesis import strategies as st

from hubbub import InvalidChannel
from hubbub.channels.pattern import Pattern

#: Names over a small alphabet, of which "y" is the unusual letter, in no literal text of the patterns below.
NAMES = ["".join(name) for length in range(1, 7) for name in product("ay:/", repeat=length)]


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    """Patterns whose literal text is "a" and separators, with up to three parameters."""
    parameters = draw(st.lists(st.sampled_from(["part", "part", "path"]), max_size=3))
    text = draw(st.text("a:/", max_size=3))
    for number, kind in enumerate(parameters):
        text += f"{{p{number}:path}}" if kind == "path" else f"{{p{number}}}"
        text += draw(st.text("a:/", min_size=number < len(parameters) - 1, max_size=2))
    try:
        return Pattern(text)
    except InvalidChannel:  # Empty, or with two paths.
        return Pattern("a:{p}")


def independent(pattern: Pattern) -> re.Pattern[str]:
    """Compile the pattern by its definition, in the plainest way."""
    regex = re.sub(r"\\{\w+:path\\}", "(.+)", re.escape(pattern.text))
    return re.compile(re.sub(r"\\{\w+\\}", "([^:/]+)", regex))


def shortest(pattern: Pattern) -> int:
    return len(pattern.outline)


@given(patterns(), st.sampled_from(NAMES))
def test_parameters_are_those_of_the_definition(pattern: Pattern, name: str) -> None:
    params = pattern.params(name)
    assert (params is not None) == pattern.matches(name) == bool(independent(pattern).fullmatch(name))
    if params is not None:
        # The parameters, in their places, make the name again.
        kinds = dict(re.findall(r"\{(\w+)(:path)?\}", pattern.text))
        assert list(params) == list(kinds)
        again = re.sub(r"\{(\w+)(:path)?\}", lambda found: params[found[1]], pattern.text)
        assert again == name
        assert all(value and (kinds[key] or not set(value) & set(":/")) for key, value in params.items())


@given(patterns(), patterns())
@example(Pattern("a:{x}:a"), Pattern("a:a:{y}"))
@example(Pattern("{a}a{b}a{c}"), Pattern("{a}aa{c}"))
@example(Pattern("{p:path}"), Pattern("{a}:/{p:path}"))
@example(Pattern("{a}:/{p:path}"), Pattern("{p:path}"))
@example(Pattern("a/{p:path}/{a}a{b}"), Pattern("a/{p:path}"))
def test_patterns_are_compared_rightly(one: Pattern, other: Pattern) -> None:
    mine = {name for name in NAMES if independent(one).fullmatch(name)}
    theirs = {name for name in NAMES if independent(other).fullmatch(name)}
    if one.is_within(other):
        assert mine <= theirs
    elif shortest(one) <= 6:
        # A name that shows it is not longer than the shortest that matches.
        assert not mine <= theirs
    common = one.common_name(other)
    if common is None:
        assert not mine & theirs
    else:
        assert independent(one).fullmatch(common)
        assert independent(other).fullmatch(common)
        assert not any(len(name) < len(common) for name in mine & theirs)
    assert (common is None) == (other.common_name(one) is None)


@given(patterns(), patterns(), patterns())
def test_being_within_is_an_order(one: Pattern, two: Pattern, three: Pattern) -> None:
    assert one.is_within(one)
    if one.is_within(two) and two.is_within(three):
        assert one.is_within(three)
    if one.is_within(two):
        assert one.common_name(two) is not None
