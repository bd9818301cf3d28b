"""The registry: from the name of a channel to its declaration."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from difflib import get_close_matches

from hubbub.channels.declaration import ChannelDeclaration
from hubbub.channels.pattern import Pattern
from hubbub.core.publication import INTERNAL
from hubbub.exceptions import InvalidChannel

#: Names whose declarations are remembered. Clients choose names, each of at most 255 characters, so there has
#: to be a bound: it keeps the cache below some 5 MB.
CACHED_NAMES = 4096


class Registry:
    """The channels that an application has declared.

    Each publish looks its channel up. So the declaration of a name is remembered, and patterns are compared
    only with names that are new; and of those, only patterns that begin as the name does.

    Of two patterns that match a name, the more specific one counts: the one all of whose names match the
    other, too. Patterns that share some names are refused if neither is more specific, so that the order of
    declarations never matters.
    """

    def __init__(self) -> None:
        # Declarations by the text of their patterns, in their order.
        self._declared: dict[str, ChannelDeclaration] = {}
        # Declarations by the text before their first parameter, and the lengths of these texts.
        self._by_prefix: dict[str, list[ChannelDeclaration]] = {}
        self._lengths: list[int] = []
        self._found: dict[str, ChannelDeclaration | None] = {}
        self._is_sealed = False

    def __iter__(self) -> Iterator[ChannelDeclaration]:
        return iter(self._declared.values())

    def add(self, channel: ChannelDeclaration) -> None:
        """Add a declaration.

        :raises InvalidChannel: its pattern has been declared already; or it matches no name that a channel
            can have; or it and another one match the same name, and neither is more specific.
        :raises RuntimeError: the registry is sealed.
        """
        if self._is_sealed:
            raise RuntimeError(
                f"Expected {channel.pattern!r} to be declared before the hub starts, but the hub is running. "
                "Call hub.channel(…) where the hub is made."
            )
        pattern = channel.parsed
        pattern.check_names()
        if pattern.text in self._declared:
            raise InvalidChannel(
                f"Expected each channel to be declared once, but {pattern.text!r} is declared twice."
            )
        for prefix, declared in self._by_prefix.items():
            if prefix.startswith(pattern.prefix) or pattern.prefix.startswith(prefix):
                for other in declared:
                    if not pattern.is_apart(other.parsed):
                        _check_pair(other.parsed, pattern)
        self._declared[pattern.text] = channel
        self._by_prefix.setdefault(pattern.prefix, []).append(channel)
        if len(pattern.prefix) not in self._lengths:
            insort(self._lengths, len(pattern.prefix))
        self._found.clear()

    def seal(self) -> None:
        """Accept no declarations from now on.

        A running node has opened channels and has set up presence with the declarations that it found; a
        later one would apply to some of its channels and not to others.
        """
        self._is_sealed = True
        for declaration in self:
            declaration.functions.is_sealed = True

    def unseal(self) -> None:
        """Accept declarations again: the node has stopped."""
        self._is_sealed = False
        for declaration in self:
            declaration.functions.is_sealed = False

    def find(self, name: str) -> ChannelDeclaration | None:
        """Return the declaration of the channel ``name``: of patterns that match, the most specific one's."""
        try:
            return self._found[name]
        except KeyError:
            return self._look_up(name)

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

    # Internal

    def _look_up(self, name: str) -> ChannelDeclaration | None:
        found: ChannelDeclaration | None = None
        # The channels in which nodes talk to each other are not the application's, not even for {all:path}.
        if not name.startswith(INTERNAL):
            for length in self._lengths:
                for declared in self._by_prefix.get(name[:length], ()):
                    if declared.parsed.matches(name) and (
                        found is None or declared.parsed.is_within(found.parsed)
                    ):
                        found = declared
        if len(self._found) >= CACHED_NAMES:
            # Simpler than removing the least recently used name, and a hit costs a single lookup.
            self._found.clear()
        self._found[name] = found
        return found

    def _advice(self, name: str, found: ChannelDeclaration | None) -> str:
        if found is not None:
            return f"Add it: hub.channel({found.pattern!r}, history=History())."
        for declared in self._declared.values():
            if reason := declared.parsed.explain_mismatch(name):
                return reason
        if nearest := get_close_matches(name, self._declared, n=1, cutoff=0.5):
            return f"The nearest pattern is {nearest[0]!r}."
        return "Declare it: hub.channel(…, history=History())."


def _check_pair(declared: Pattern, new: Pattern) -> None:
    """Check that of two patterns that match the same name, one is more specific.

    :raises InvalidChannel: neither is.
    """
    common = declared.common_name(new)
    if common is None:
        return
    is_within, contains = new.is_within(declared), declared.is_within(new)
    if is_within and contains:
        raise InvalidChannel(
            f"Expected each channel to be declared once, but {declared.text!r} and {new.text!r} match the "
            "same names. Declare one of them."
        )
    if not (is_within or contains):
        raise InvalidChannel(
            f"Expected one of two patterns to be more specific, but {declared.text!r} and {new.text!r} both "
            f"match {common!r}, and each matches names that the other does not. Change the literal text of "
            "one of them, so that no name matches both."
        )
