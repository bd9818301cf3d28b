"""Patterns: the names of many channels, written as one name with parameters."""

from __future__ import annotations

import re
from collections import deque
from functools import cached_property
from itertools import product

from hubbub.core.publication import MAX_CHANNEL_LENGTH, check_channel
from hubbub.exceptions import InvalidChannel

_PARAMETER = re.compile(r"\{([^{}]*)\}")

# These stand for {name} and for {name:path} in the outline of a pattern (see Pattern.outline). No channel and
# no declared pattern has control characters.
_PART = "\x02"
_PATH = "\x03"

#: The text that each parameter matches: {name} a part of a channel name, as in "room:5" or "shop/orders",
#: {name:path} any number of parts. In the outline of another pattern, a part does not match a path.
_TEXTS = {_PART: f"[^:/{_PATH}]+", _PATH: ".+"}
_SEPARATORS = re.compile("([:/])")
_NO_PARAMETERS = {ord(_PART): None, ord(_PATH): None}


class Pattern:
    """A parsed pattern, such as ``"room:{room_id}"`` or ``"file:{path:path}"``.

    ::

        pattern = Pattern("room:{room_id}")
        assert pattern.params("room:5") == {"room_id": "5"}
        assert pattern.is_within(Pattern("{kind}:{id}"))

    If a name matches in several ways, as ``"a-b-c"`` matches ``"{x}-{y}"``, the earlier parameter is the
    shorter one: ``{"x": "a", "y": "b-c"}``.

    :param text: a channel name, in which ``{name}`` stands for one or more characters other than ``:`` and
        ``/``, and ``{name:path}`` for one or more characters.
    :raises InvalidChannel: ``text`` is not a pattern.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise InvalidChannel(f"Expected a pattern as str, but got {type(text).__name__}.")
        parts = _PARAMETER.split(text)
        parameters = [parameter.partition(":") for parameter in parts[1::2]]
        self.text = text
        self._literals = parts[::2]
        #: The names of its parameters, in their order.
        self.names = tuple(name for name, _, _ in parameters)
        # Of each parameter: "" or ":path".
        self._kinds = [colon + kind for _, colon, kind in parameters]
        self._check()
        self._regex = self._compile(self._kinds)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    @property
    def prefix(self) -> str:
        """The text before the first parameter, with which all names begin."""
        return self._literals[0]

    def matches(self, name: str) -> bool:
        """Whether ``name`` is a channel of this pattern."""
        return self._regex.fullmatch(name) is not None

    def params(self, name: str) -> dict[str, str] | None:
        """Return the parameters of the channel ``name``; ``None`` if it does not match."""
        match = self._regex.fullmatch(name)
        return None if match is None else dict(zip(self.names, match.groups(), strict=True))

    def check_names(self) -> None:
        """Check that a channel can have a name that matches.

        :raises InvalidChannel: the text outside of parameters is too long, or has control characters.
        """
        # The shortest name that matches.
        check_channel(_PARAMETER.sub("x", self.text))

    def explain_mismatch(self, name: str) -> str:
        """Say which parameter keeps ``name`` from matching.

        :return: a sentence; empty if more than one parameter does not match.
        """
        for index, parameter in enumerate(self.names):
            kinds = [":path" if number == index else kind for number, kind in enumerate(self._kinds)]
            match = self._compile(kinds).fullmatch(name)
            if match and (separator := re.search("[:/]", match[index + 1])):
                return (
                    f"{name!r} does not match {self.text!r}: {{{parameter}}} matches no "
                    f"{separator[0]!r}; use {{{parameter}:path}}."
                )
        return ""

    # Comparing

    @cached_property
    def outline(self) -> str:
        """The pattern as a name of the most general kind: with a character of its own for each parameter."""
        parameters = [_PATH if kind else _PART for kind in self._kinds]
        return "".join(map("".join, zip(["", *parameters], self._literals, strict=True)))

    def is_within(self, other: Pattern) -> bool:
        """Whether every name that matches this pattern matches ``other``, too.

        This is exact. The outline has, for each parameter, a character that no literal text has. Where
        ``other`` matches the outline, its parameters match these characters, and match as well each text that
        can be in their place. And where it does not, it misses a name that this pattern matches: the one with
        an unusual letter for each ``{name}``, and with ``:`` or with ``/`` for ``{name:path}``. (If ``other``
        matched both, only its ``{name:path}`` could have matched the ``:`` and the ``/``, because all its
        other separators are the same in every name.)
        """
        return other.matches(self.outline)

    def common_name(self, other: Pattern) -> str | None:
        """Return one of the shortest names that match both patterns; ``None`` if no channel's name does."""
        if self.is_apart(other):
            return None
        # A breadth-first search through the product of the two automata. Each is in the state n when it has
        # matched the first n characters of its outline; after a parameter it may also stay in its state.
        end = len(self.outline), len(other.outline)
        names = {(0, 0): ""}
        waiting = deque(names)
        while waiting and end not in names:
            state, other_state = states = waiting.popleft()
            name = names[states]
            if len(name) == MAX_CHANNEL_LENGTH:
                break
            # The characters that literal text asks for, any other one, and the separators. The rest of all
            # characters does no more than "x" does.
            literal = self.outline[state : state + 1] + other.outline[other_state : other_state + 1]
            for character in dict.fromkeys(f"{literal}x:/".translate(_NO_PARAMETERS)):
                for following in product(self._next(state, character), other._next(other_state, character)):
                    if following not in names:
                        names[following] = name + character
                        waiting.append(following)
        return names.get(end)

    def _next(self, state: int, character: str) -> list[int]:
        """Return the states that follow ``state`` after ``character``."""
        last, coming = self.outline[max(state - 1, 0) : state], self.outline[state : state + 1]
        stays = last == _PATH or (last == _PART and character not in ":/")
        advances = coming in (character, _PATH) or (coming == _PART and character not in ":/")
        return [state] * stays + [state + 1] * advances

    def is_apart(self, other: Pattern) -> bool:
        """Whether literal text alone shows that no name matches both patterns.

        This is quick. Registries with a thousand patterns compare each of them with most others.
        """
        first, other_first = self._literals[0], other._literals[0]
        if not (first.startswith(other_first) or other_first.startswith(first)):
            return True
        last, other_last = self._literals[-1], other._literals[-1]
        if not (last.endswith(other_last) or other_last.endswith(last)):
            return True
        front, back, is_open = self._sides
        other_front, other_back, other_is_open = other._sides
        if not (is_open or other_is_open):
            return len(front) != len(other_front) or _differ(front, other_front)
        return _differ(front, other_front) or _differ(back, other_back)

    @cached_property
    def _sides(self) -> tuple[list[str | None], list[str | None], bool]:
        """Its parts and separators from the front, from the back, and whether a path is between.

        ``None`` stands for a part with a parameter in it.
        """
        before, path, after = self.outline.partition(_PATH)
        front, back = (
            [None if _PART in text else text for text in _SEPARATORS.split(side)] for side in (before, after)
        )
        # The parts that touch the path are not whole.
        return (front[:-1], back[:0:-1], True) if path else (front, front[::-1], False)

    # Internal

    def _check(self) -> None:
        if any("{" in literal or "}" in literal for literal in self._literals) or not self.text:
            raise InvalidChannel(f'Expected a pattern such as "room:{{room_id}}", but got {self.text!r}.')
        for name, kind in zip(self.names, self._kinds, strict=True):
            if not name.isidentifier() or self.names.count(name) > 1:
                raise InvalidChannel(
                    f"Expected each parameter to have a name of its own, but got {name!r} in {self.text!r}."
                )
            if kind not in ("", ":path"):
                raise InvalidChannel(
                    f"Expected {{{name}}} or {{{name}:path}}, but got {{{name}{kind}}} in {self.text!r}."
                )
        if self._kinds.count(":path") > 1 or "" in self._literals[1:-1]:
            raise InvalidChannel(
                f"Expected at most one {{name:path}}, and text between two parameters, but got {self.text!r}."
            )

    def _compile(self, kinds: list[str]) -> re.Pattern[str]:
        regex = re.escape(self._literals[0])
        for number, (kind, literal) in enumerate(zip(kinds, self._literals[1:], strict=True), 1):
            text, following = _TEXTS[_PATH if kind else _PART], re.escape(literal)
            if kind or number == len(kinds) or _SEPARATORS.search(literal):
                regex += f"({text}){following}"
            else:
                # The first place of the literal text is as good as any later one, because the next parameter
                # can match the text in between. A lookahead is not tried again, so that a name from a client
                # cannot make the search take time that grows with a power of its length.
                regex += f"(?=({text}?){following})(?:\\{number}){following}"
        return re.compile(regex)


def _differ(some: list[str | None], others: list[str | None]) -> bool:
    """Whether there are two different texts at the same place."""
    for one, other in zip(some, others, strict=False):
        if one != other and one is not None and other is not None:
            return True
    return False
