"""Patterns: the names of many channels, written as one name with parameters."""

from __future__ import annotations

import re

from hubbub.core.publication import check_channel
from hubbub.exceptions import InvalidChannel

_PARAMETER = re.compile(r"\{([^{}]*)\}")

#: The text that ``{name}`` matches: a part of a channel name, as in "room:5" or "shop/orders".
_PART = "[^:/]+"
#: The text that ``{name:path}`` matches: any number of parts.
_PATH = ".+"


class Pattern:
    """A parsed pattern, such as ``"room:{room_id}"`` or ``"file:{path:path}"``.

    :param text: a channel name, in which ``{name}`` stands for one or more characters other than ``:`` and
        ``/``, and ``{name:path}`` for one or more characters.
    :raises InvalidChannel: ``text`` is not a pattern.
    """

    __slots__ = ("_kinds", "_literals", "_names", "_regex", "text")

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise InvalidChannel(f"Expected a pattern as str, but got {type(text).__name__}.")
        parts = _PARAMETER.split(text)
        parameters = [parameter.partition(":") for parameter in parts[1::2]]
        self.text = text
        self._literals = parts[::2]
        self._names = [name for name, _, _ in parameters]
        # Of each parameter: "" or ":path".
        self._kinds = [colon + kind for _, colon, kind in parameters]
        self._check()
        self._regex = self._compile(self._kinds)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters, in their order."""
        return tuple(self._names)

    def params(self, name: str) -> dict[str, str] | None:
        """Return the values of the parameters in ``name``; ``None`` if it does not match."""
        match = self._regex.fullmatch(name)
        return None if match is None else dict(zip(self._names, match.groups(), strict=True))

    def matches(self, name: str) -> bool:
        """Whether ``name`` is a channel of this pattern."""
        return self._regex.fullmatch(name) is not None

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
        for index, parameter in enumerate(self._names):
            kinds = [":path" if number == index else kind for number, kind in enumerate(self._kinds)]
            match = self._compile(kinds).fullmatch(name)
            if match and (separator := re.search("[:/]", match[index + 1])):
                return (
                    f"{name!r} does not match {self.text!r}: {{{parameter}}} matches no "
                    f"{separator[0]!r}; use {{{parameter}:path}}."
                )
        return ""

    def _check(self) -> None:
        if any("{" in literal or "}" in literal for literal in self._literals) or not self.text:
            raise InvalidChannel(f'Expected a pattern such as "room:{{room_id}}", but got {self.text!r}.')
        for name, kind in zip(self._names, self._kinds, strict=True):
            if not name.isidentifier() or self._names.count(name) > 1:
                raise InvalidChannel(
                    f"Expected each parameter to have a name of its own, but got {name!r} in {self.text!r}."
                )
            if kind not in ("", ":path"):
                raise InvalidChannel(
                    f"Expected {{{name}}} or {{{name}:path}}, but got {{{name}{kind}}} in {self.text!r}."
                )
        if self._kinds.count(":path") > 1 or "" in self._literals[1:-1]:
            raise InvalidChannel(
                "Expected at most one {name:path}, and text between two parameters, so that a name matches "
                f"in one way only, but got {self.text!r}."
            )

    def _compile(self, kinds: list[str]) -> re.Pattern[str]:
        groups = ["", *(f"({_PATH if kind == ':path' else _PART})" for kind in kinds)]
        return re.compile(
            "".join(group + re.escape(text) for group, text in zip(groups, self._literals, strict=True))
        )
