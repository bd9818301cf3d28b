"""The registry: from the name of a channel to its declaration."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from hubbub.channels.declaration import PARAMETER, ChannelDeclaration
from hubbub.core.publication import check_channel
from hubbub.exceptions import InvalidChannel


class Registry:
    """The channels that an application has declared."""

    def __init__(self) -> None:
        self._declared: list[ChannelDeclaration] = []

    def __iter__(self) -> Iterator[ChannelDeclaration]:
        return iter(self._declared)

    def add(self, channel: ChannelDeclaration) -> None:
        """
        :raises InvalidChannel: the pattern has been declared already, or fits no name that a channel can
            have.
        """
        check_channel(PARAMETER.sub("x", channel.pattern))
        if any(declared.pattern == channel.pattern for declared in self._declared):
            raise InvalidChannel(
                f"Expected each channel to be declared once, but {channel.pattern!r} is declared twice."
            )
        self._declared.append(channel)

    def find(self, name: str) -> ChannelDeclaration | None:
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

    def _advice(self, name: str, found: ChannelDeclaration | None) -> str:
        if found is not None:
            return f"Add it: hub.channel({found.pattern!r}, history=History())."
        for declared in self._declared:
            if reason := declared.why_not(name):
                return reason
        patterns = [declared.pattern for declared in self._declared]
        if nearest := get_close_matches(name, patterns, n=1, cutoff=0.5):
            return f"The nearest pattern is {nearest[0]!r}."
        return "Declare it: hub.channel(…, history=History())."
