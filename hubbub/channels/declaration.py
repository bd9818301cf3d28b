"""Channels that an application declares, by pattern."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hubbub.core.history import History
from hubbub.exceptions import InvalidChannel

PARAMETER = re.compile(r"\{([^{}]*)\}")

#: What a parameter stands for: a part of a name, as in "room:5" or "shop/orders"; or, as {name:path}, any
#: number of parts.
_PART = "[^:/]+"
_PATH = ".+"


@dataclass(frozen=True, slots=True)
class ChannelDeclaration:
    """All channels whose names fit a pattern.

    :param pattern: a channel's name, in which ``{name}`` stands for one or more characters other than ``:``
        and ``/``, and ``{name:path}`` for one or more characters: ``"room:{room_id}"``,
        ``"file:{path:path}"``.
    :param history: what each of them keeps, so that clients can catch up; ``None`` keeps nothing.
    :param presence: whether it is known, in all processes, who is in each of them.
    :raises InvalidChannel: the pattern is not one.
    :raises TypeError: another parameter is of the wrong type.
    """

    pattern: str
    history: History | None = None
    presence: bool = False
    _regex: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise InvalidChannel(f"Expected a pattern as str, but got {type(self.pattern).__name__}.")
        if self.history is not None and not isinstance(self.history, History):
            raise TypeError(
                f"Expected a History for the history of {self.pattern!r}, such as History(size=100, "
                f"ttl=3600), but got {self.history!r}."
            )
        if not isinstance(self.presence, bool):
            raise TypeError(
                f"Expected True or False for the presence of {self.pattern!r}, but got {self.presence!r}."
            )
        literals, parameters = _split(self.pattern)
        names = [name for name, _ in parameters]
        if any("{" in literal or "}" in literal for literal in literals) or not self.pattern:
            raise InvalidChannel(f'Expected a pattern such as "room:{{room_id}}", but got {self.pattern!r}.')
        for name, kind in parameters:
            if not name.isidentifier() or names.count(name) > 1:
                raise InvalidChannel(
                    f"Expected each parameter to be a name of its own, but got {name!r} in {self.pattern!r}."
                )
            if kind not in ("", ":path"):
                raise InvalidChannel(
                    f"Expected {{{name}}} or {{{name}:path}}, but got {{{name}{kind}}} in {self.pattern!r}."
                )
        if [kind for _, kind in parameters].count(":path") > 1 or "" in literals[1:-1]:
            raise InvalidChannel(
                "Expected at most one {name:path}, and something between two parameters, so that a name fits "
                f"in one way only, but got {self.pattern!r}."
            )
        object.__setattr__(self, "_regex", _regex(literals, [kind for _, kind in parameters]))

    def fits(self, name: str) -> bool:
        """Whether ``name`` is one of these channels."""
        return self._regex.fullmatch(name) is not None

    def why_not(self, name: str) -> str:
        """Why ``name``, which nearly fits, does not: '' if it does not nearly fit."""
        literals, parameters = _split(self.pattern)
        for index, (parameter, _) in enumerate(parameters):
            kinds = [":path" if each == index else kind for each, (_, kind) in enumerate(parameters)]
            nearly = _regex(literals, kinds).fullmatch(name)
            if nearly and (separator := re.search("[:/]", nearly[index + 1])):
                return (
                    f"{name!r} does not match {self.pattern!r}: {{{parameter}}} matches no "
                    f"{separator[0]!r}; use {{{parameter}:path}}."
                )
        return ""


def _split(pattern: str) -> tuple[list[str], list[tuple[str, str]]]:
    """What is literal in ``pattern``, and the parameters in between: their names, and what comes behind
    these."""
    parts = PARAMETER.split(pattern)
    parameters = [parameter.partition(":") for parameter in parts[1::2]]
    return parts[::2], [(name, colon + kind) for name, colon, kind in parameters]


def _regex(literals: list[str], kinds: list[str]) -> re.Pattern[str]:
    groups = ["", *(f"({_PATH if kind == ':path' else _PART})" for kind in kinds)]
    return re.compile("".join(group + re.escape(text) for group, text in zip(groups, literals, strict=True)))
