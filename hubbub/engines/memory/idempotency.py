"""Idempotency keys in memory: a bounded number of them, each of the same size."""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import blake2b

from hubbub.core.publication import Position
from hubbub.engines.base import IDEMPOTENCY_WINDOW

logger = logging.getLogger(__name__)

#: Idempotency keys remembered. Each takes some 300 bytes, however long it is.
MAX_KEYS = 200_000


class IdempotencyKeys:
    """The positions of publications that had an idempotency key, for ``IDEMPOTENCY_WINDOW`` seconds.

    :param clock: returns seconds, and is never set back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # The digest of channel and key -> position and time of the publication; the oldest first.
        self._keys: dict[bytes, tuple[Position, float]] = {}
        self._has_warned = False

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, digest: bytes, now: float) -> Position | None:
        """Return the position of the earlier publication with this key, if there is one."""
        position, published = self._keys.get(digest, (None, 0.0))
        return position if published + IDEMPOTENCY_WINDOW > now else None

    def add(self, digest: bytes, position: Position, now: float) -> None:
        # An expired entry loses its place, so that entries stay ordered by time.
        self._keys.pop(digest, None)
        if len(self._keys) >= MAX_KEYS:
            del self._keys[next(iter(self._keys))]
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "More than %d idempotency keys were used within %g s; the oldest are forgotten early.",
                    MAX_KEYS,
                    IDEMPOTENCY_WINDOW,
                )
        self._keys[digest] = (position, now)

    def expire(self, limit: int) -> int:
        """Forget at most ``limit`` expired keys, and return how many."""
        now = self._clock()
        expired: list[bytes] = []
        for digest, (_, published) in self._keys.items():
            if published + IDEMPOTENCY_WINDOW > now or len(expired) == limit:
                break
            expired.append(digest)
        for digest in expired:
            del self._keys[digest]
        return len(expired)


def digest(channel: str, idempotency_key: str) -> bytes:
    """Return the digest by which a channel's key is remembered. All digests have one size."""
    # No channel has a NUL in its name.
    text = f"{channel}\0{idempotency_key}".encode(errors="surrogatepass")
    return blake2b(text, digest_size=16).digest()
