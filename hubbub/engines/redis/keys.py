"""The keys and topics of a hub in Redis."""

from __future__ import annotations

# A cluster places a key by the part of it that is in braces. Braces in names are quoted with "%".
_QUOTED = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


class Keys:
    """The names of one hub in Redis.

    In a cluster, all keys of a channel lie on one node, and so do those of all leases.

    :param namespace: the prefix of all keys.
    :param db: the number of the database.
    """

    def __init__(self, namespace: str, db: int) -> None:
        self._prefix = namespace.translate(_QUOTED)
        self._db = db
        #: The leases and when each lapses. No key of a channel equals it: quoted, a "%" is never followed by
        #: "l".
        self.leases = f"{self._prefix}:{{%leases}}"

    def lease(self, lease: str) -> str:
        """Return the key of the channels that may have entries under ``lease``."""
        return f"{self.leases}:{lease}"

    def meta(self, channel: str) -> str:
        """Return the key of the state of the channel's stream: position, history, generation."""
        return f"{self._base(channel)}:meta"

    def log(self, channel: str) -> str:
        """Return the key of the publications that the channel has kept."""
        return f"{self._base(channel)}:log"

    def once(self, channel: str, idempotency_key: str) -> str:
        """Return the key of the position of the publication with ``idempotency_key``."""
        return f"{self._base(channel)}:key:{idempotency_key}"

    def presence(self, channel: str) -> str:
        """Return the key of the channel's presence entries."""
        return f"{self._base(channel)}:presence"

    def topic(self, channel: str) -> bytes:
        """Return the channel's name in Redis's publish/subscribe.

        Redis has one publish/subscribe for all its databases; the number of ours keeps hubs in different
        databases apart.
        """
        return f"{self._base(channel)}:{self._db}".encode()

    def _base(self, channel: str) -> str:
        return f"{self._prefix}:{{{channel.translate(_QUOTED)}}}"
