"""Channels that an application declares, by pattern."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hubbub.exceptions import InvalidChannel
from hubbub.types import History

_PARAMETER = re.compile(r"\{([^{}]*)\}")

#: What a parameter stands for: a part of a name, as in "room:5" or "shop/orders".
_PART = "[^:/]+"


@dataclass(frozen=True, slots=True)
class Channel:
    """All channels whose names fit a pattern.

    :param pattern: a channel's name, in which ``{…}`` stands for one or more characters other than ``:`` and
        ``/``: ``"room:{room_id}"``.
    :param history: what each of them keeps, so that clients can catch up; ``None`` keeps nothing.
    :param presence: whether it is known, in all processes, who is in each of them.
    :raises InvalidChannel: the pattern is not one.
    """

    pattern: str
    history: History | None = None
    presence: bool = False
    _regex: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        literals = _PARAMETER.split(self.pattern)
        names, literals = literals[1::2], literals[::2]
        if any("{" in literal or "}" in literal for literal in literals) or not self.pattern:
            raise InvalidChannel(f'Expected a pattern such as "room:{{room_id}}", but got {self.pattern!r}.')
        for name in names:
            if not name.isidentifier() or names.count(name) > 1:
                raise InvalidChannel(
                    f"Expected each parameter to be a name of its own, but got {name!r} in {self.pattern!r}."
                )
        regex = _PART.join(map(re.escape, literals))
        object.__setattr__(self, "_regex", re.compile(regex))

    def fits(self, name: str) -> bool:
        """Whether ``name`` is one of these channels."""
        return self._regex.fullmatch(name) is not None
