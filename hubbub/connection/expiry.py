"""Expiry: the end of a connection whose identity is valid for a limited time.

The moment is one of the calendar, not of a clock that stands still while the machine sleeps: a token does not
stay valid through a night because the laptop with the server was closed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Seconds before the expiry in which a client can refresh its token.
NOTICE = 25


class Expiry:
    """The expiry of one connection, which is asked about the time once a second.

    :param expires_at: the moment, in seconds since 1970.
    :param on_expiring: called once with the seconds that are left, at most 25, when no more than these are.
    """

    __slots__ = ("_expires_at", "_on_expiring")

    def __init__(self, expires_at: float, on_expiring: Callable[[int], object] | None = None) -> None:
        self._expires_at = expires_at
        self._on_expiring = on_expiring

    def check(self, now: float) -> bool:
        """Whether the moment has come. Before it, gives notice when it is due.

        :param now: seconds since 1970.
        """
        left = self._expires_at - now
        if left <= 0:
            return True
        if left <= NOTICE and self._on_expiring is not None:
            # First forgotten, so that it is not called again, even if it raises or the clock is set back.
            notify, self._on_expiring = self._on_expiring, None
            try:
                notify(math.ceil(left))
            except Exception:
                # The node checks its other connections after this one.
                logger.exception("Could not notify a client of its expiry.")
        return False
