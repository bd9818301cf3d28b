"""Channels that an application declares, by pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches

from hubbub.core.publication import check_channel
from hubbub.exceptions import InvalidChannel
from hubbub.types import History

_PARAMETER = re.compile(r"\{([^{}]*)\}")

#: What a parameter stands for: a part of a name, as in "room:5" or "shop/orders"; or, as {name:path}, any
#: number of parts.
_PART = "[^:/]+"
_PATH = ".+"


@dataclass(frozen=True, slots=True)
class Channel:
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


class Channels:
    """The channels that an application has declared."""

    def __init__(self) -> None:
        self._declared: list[Channel] = []

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._declared)

    def add(self, channel: Channel) -> None:
        """
        :raises InvalidChannel: the pattern has been declared already, or fits no name that a channel can
            have.
        """
        check_channel(_PARAMETER.sub("x", channel.pattern))
        if any(declared.pattern == channel.pattern for declared in self._declared):
            raise InvalidChannel(
                f"Expected each channel to be declared once, but {channel.pattern!r} is declared twice."
            )
        self._declared.append(channel)

    def find(self, name: str) -> Channel | None:
        """What ``name`` is declared as: the first pattern that it fits."""
        for declared in self._declared:
            if declared.fits(name):
                return declared
        return None

    def check_history(self, name: str) -> None:
        """Check that the channel ``name`` is declared with a history.

        :raises InvalidChannel: it is not; the message names the nearest pattern.
        """
        declared = self.find(name)
        if declared is None or declared.history is None:
            raise InvalidChannel(
                f"Expected a channel that is declared with a history, but {name!r} is not. "
                f"{self._advice(name, declared)}"
            )

    def _advice(self, name: str, found: Channel | None) -> str:
        if found is not None:
            return f"Add it: hub.channel({found.pattern!r}, history=History())."
        for declared in self._declared:
            if reason := declared.why_not(name):
                return reason
        patterns = [declared.pattern for declared in self._declared]
        if nearest := get_close_matches(name, patterns, n=1, cutoff=0.5):
            return f"The nearest pattern is {nearest[0]!r}."
        return "Declare it: hub.channel(…, history=History())."


def _split(pattern: str) -> tuple[list[str], list[tuple[str, str]]]:
    """What is literal in ``pattern``, and the parameters in between: their names, and what comes behind
    these."""
    parts = _PARAMETER.split(pattern)
    parameters = [parameter.partition(":") for parameter in parts[1::2]]
    return parts[::2], [(name, colon + kind) for name, colon, kind in parameters]


def _regex(literals: list[str], kinds: list[str]) -> re.Pattern[str]:
    groups = ["", *(f"({_PATH if kind == ':path' else _PART})" for kind in kinds)]
    return re.compile("".join(group + re.escape(text) for group, text in zip(groups, literals, strict=True)))
