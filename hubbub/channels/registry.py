"""The registry: from the name of a channel to its declaration."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from hubbub.channels.declaration import ChannelDeclaration
from hubbub.channels.pattern import Pattern
from hubbub.exceptions import InvalidChannel

#: Names whose declarations are remembered. Clients choose names, each of at most 255 characters, so there has
#: to be a bound: it keeps the cache below some 5 MB.
CACHED_NAMES = 4096


class Registry:
    """The channels that an application has declared.

    Each publish looks its channel up. So the declaration of a name is remembered, and patterns are compared
    only with names that are new.
    """

    def __init__(self) -> None:
        self._declared: list[ChannelDeclaration] = []
        self._found: dict[str, ChannelDeclaration | None] = {}
        self._is_sealed = False

    def __iter__(self) -> Iterator[ChannelDeclaration]:
        return iter(self._declared)

    def add(self, channel: ChannelDeclaration) -> None:
        """Add a declaration.

        :raises InvalidChannel: its pattern has been declared already, or matches no name that a channel can
            have.
        :raises RuntimeError: the registry is sealed.
        """
        if self._is_sealed:
            raise RuntimeError(
                f"Expected {channel.pattern!r} to be declared before the hub starts, but the hub is running. "
                "Call hub.channel(…) where the hub is made."
            )
        Pattern(channel.pattern).check_names()
        if any(declared.pattern == channel.pattern for declared in self._declared):
            raise InvalidChannel(
                f"Expected each channel to be declared once, but {channel.pattern!r} is declared twice."
            )
        self._declared.append(channel)
        self._found.clear()

    def seal(self) -> None:
        """Accept no declarations from now on.

        A running node has opened channels and has set up presence with the declarations that it found; a
        later one would apply to some of its channels and not to others.
        """
        self._is_sealed = True

    def unseal(self) -> None:
        """Accept declarations again: the node has stopped."""
        self._is_sealed = False

    def find(self, name: str) -> ChannelDeclaration | None:
        """Return the declaration of the channel ``name``: of patterns that match, the one declared first."""
        try:
            return self._found[name]
        except KeyError:
            pass
        found = next((declared for declared in self._declared if declared.matches(name)), None)
        if len(self._found) >= CACHED_NAMES:
            # Simpler than removing the least recently used name, and a hit costs a single lookup.
            self._found.clear()
        self._found[name] = found
        return found

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
            if reason := Pattern(declared.pattern).explain_mismatch(name):
                return reason
        patterns = [declared.pattern for declared in self._declared]
        if nearest := get_close_matches(name, patterns, n=1, cutoff=0.5):
            return f"The nearest pattern is {nearest[0]!r}."
        return "Declare it: hub.channel(…, history=History())."
