"""Declarations: channels that an application declares, by pattern."""

from __future__ import annotations

from dataclasses import dataclass, field

from hubbub.channels.pattern import Pattern
from hubbub.core.history import History


@dataclass(frozen=True, slots=True)
class ChannelDeclaration:
    """The settings of all channels whose names match a pattern; made by :meth:`hubbub.Hub.channel`.

    ::

        room = hub.channel("room:{room_id}", history=History(size=200), presence=True)
        assert room.matches("room:5")

    :param pattern: a channel name, in which ``{name}`` stands for one or more characters other than ``:``
        and ``/``, and ``{name:path}`` for one or more characters: ``"room:{room_id}"``,
        ``"file:{path:path}"``.
    :param history: the history that each channel keeps, for clients that reconnect; ``None`` keeps none.
    :param presence: whether the connections in each channel are visible in presence, in all processes.
    :raises InvalidChannel: ``pattern`` is not a pattern.
    :raises TypeError: another parameter has the wrong type.
    """

    pattern: str
    history: History | None = None
    presence: bool = False
    _parsed: Pattern = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parsed", Pattern(self.pattern))
        if self.history is not None and not isinstance(self.history, History):
            raise TypeError(
                f"Expected a History for the history of {self.pattern!r}, such as History(size=100, "
                f"ttl=3600), but got {self.history!r}."
            )
        if not isinstance(self.presence, bool):
            raise TypeError(
                f"Expected True or False for the presence of {self.pattern!r}, but got {self.presence!r}."
            )

    def matches(self, name: str) -> bool:
        """Whether ``name`` is one of these channels."""
        return self._parsed.matches(name)
