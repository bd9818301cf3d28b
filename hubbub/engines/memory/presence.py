"""Presence in memory: leases, and the entries under them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from hubbub.engines.base import PresenceChange


class Presence:
    """Leases and presence entries; the methods are those of :class:`~hubbub.engines.Engine`.

    :param clock: returns seconds, and is never set back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Channel -> connection -> data and lease of its entry.
        self._entries: dict[str, dict[str, tuple[bytes, str]]] = {}
        # Lease -> when it lapses.
        self._leases: dict[str, float] = {}

    @property
    def leases(self) -> Collection[str]:
        """The leases that have not been removed."""
        return self._leases.keys()

    def update(self, lease: str, ttl: float, changes: Sequence[PresenceChange], begin: bool) -> bool:
        if lease not in self._leases and not begin:
            return False
        self._leases[lease] = self._clock() + ttl
        for channel, connection, data in changes:
            if data is None:
                self._remove(channel, connection)
            else:
                self._entries.setdefault(channel, {})[connection] = (data, lease)
        return True

    def expire(self, grace: float) -> Sequence[PresenceChange]:
        oldest = self._clock() - grace
        lapsed = {lease for lease, lapses in self._leases.items() if lapses < oldest}
        removed = [
            PresenceChange(channel, connection, None)
            for channel, entries in self._entries.items()
            for connection, (_, lease) in entries.items()
            if lease in lapsed
        ]
        for channel, connection, _ in removed:
            self._remove(channel, connection)
        for lease in lapsed:
            del self._leases[lease]
        return removed

    def entries(self, channel: str) -> Mapping[str, bytes]:
        """Return the data of each connection in ``channel``."""
        return {connection: data for connection, (data, _) in self._entries.get(channel, {}).items()}

    def _remove(self, channel: str, connection: str) -> None:
        entries = self._entries.get(channel, {})
        entries.pop(connection, None)
        if not entries:
            self._entries.pop(channel, None)
