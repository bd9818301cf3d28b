"""What things are called in Redis."""

from __future__ import annotations

# Braces in a key say what decides about its place in a cluster; "%" is what they are quoted with.
_QUOTED = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


class Keys:
    """The names of one hub in Redis. All keys of a channel lie on one node of a cluster, and so do those of
    all leases.

    :param namespace: what all of them begin with.
    :param db: the number of the database.
    """

    def __init__(self, namespace: str, db: int) -> None:
        self._prefix = namespace.translate(_QUOTED)
        self._db = db
        #: When each lease lapses. No channel is called so: quoted, a "%" is never followed by "l".
        self.leases = f"{self._prefix}:{{%leases}}"

    def lease(self, lease: str) -> str:
        """The channels in which there may be entries under ``lease``."""
        return f"{self.leases}:{lease}"

    def meta(self, channel: str) -> str:
        """Where the channel's stream stands."""
        return f"{self._base(channel)}:meta"

    def log(self, channel: str) -> str:
        """What the channel's stream has kept."""
        return f"{self._base(channel)}:log"

    def once(self, channel: str, idempotency_key: str) -> str:
        """The position of what was published with that key."""
        return f"{self._base(channel)}:key:{idempotency_key}"

    def presence(self, channel: str) -> str:
        """Who is in the channel."""
        return f"{self._base(channel)}:presence"

    def topic(self, channel: str) -> bytes:
        """What the channel is called in Redis's publish/subscribe. Databases share that; what lies in
        different ones is to be kept apart all the same."""
        return f"{self._base(channel)}:{self._db}".encode()

    def _base(self, channel: str) -> str:
        return f"{self._prefix}:{{{channel.translate(_QUOTED)}}}"
