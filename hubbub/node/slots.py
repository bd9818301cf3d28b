"""Slots: the places for connections in a process, and for those of one user."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from hubbub.core.throttle import Throttle
from hubbub.node.refusals import CountedRefusal, Refusals
from hubbub.types import check_limit

logger = logging.getLogger(__name__)

#: Seconds after which a client should try again that was refused because the process is full.
RETRY_AFTER = 5


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many connections there may be; ``Hub(...)`` describes the parameters.

    :param max_connections: of one process; ``None``: no limit.
    :param max_user_connections: of one user in one process; ``None``: no limit.
    :raises TypeError: a parameter has the wrong type.
    :raises ValueError: a parameter is out of range.
    """

    max_connections: int | None = 50_000
    max_user_connections: int | None = 100

    def __post_init__(self) -> None:
        check_limit("max_connections", self.max_connections)
        check_limit("max_user_connections", self.max_user_connections)


class Slots:
    """The slots of one node: each connection takes one before it is accepted.

    A slot is taken in one step, without waiting, before anything of the connection is awaited. So clients
    that connect at the same time cannot pass the limit together.

    :param capacity: the limits.
    :param refusals: counts clients that get no slot.
    """

    def __init__(self, capacity: Capacity, refusals: Refusals) -> None:
        self._capacity = capacity
        self._refusals = refusals
        self._taken = 0
        # By user: the slots that it has. Users without a slot are not in it.
        self._users: dict[str, int] = {}
        # One line in the log every ten seconds for each, however many clients are refused.
        self._full, self._user_full = Throttle(), Throttle()

    def __len__(self) -> int:
        return self._taken

    def take(self) -> Slot:
        """Take a slot, for a client whose user may not be known yet.

        :raises HTTPException: all slots are taken (503).
        """
        most = self._capacity.max_connections
        if most is not None and self._taken >= most:
            self._refusals.count("connections")
            if (more := self._full.admit()) is not None:
                logger.warning(
                    "Refused a connection with 503: this process has %d, as many as "
                    "Hub(max_connections=…) allows.%s",
                    most,
                    more,
                )
            raise CountedRefusal(
                503,
                "This server has as many connections as it can take. Try again later.",
                headers={"Retry-After": str(RETRY_AFTER)},
            )
        self._taken += 1
        return Slot(self)

    def claim(self, user: str) -> None:
        """Count one more slot of ``user``.

        :raises HTTPException: the user has all that one user may have (429).
        """
        most = self._capacity.max_user_connections
        count = self._users.get(user, 0)
        if most is not None and count >= most:
            self._refusals.count("user_connections")
            if (more := self._user_full.admit()) is not None:
                logger.warning(
                    "Refused a connection of user %.200r with 429: it has %d in this process, as many as "
                    "Hub(max_user_connections=…) allows.%s",
                    user,
                    most,
                    more,
                )
            raise CountedRefusal(429, "This user has as many connections as one user may have.")
        self._users[user] = count + 1

    def unclaim(self, user: str) -> None:
        """Count one slot of ``user`` less."""
        if self._users[user] == 1:
            del self._users[user]
        else:
            self._users[user] -= 1

    def give_back(self) -> None:
        """Count one slot less."""
        self._taken -= 1


class Slot:
    """The place of one connection, from before its user is known until it has ended.

    ::

        slot = node.admit()
        try:
            identity = await identify(http)
            slot.claim_user(identity.user)
            ...
        finally:
            slot.release()

    :param slots: those that it was taken from.
    """

    __slots__ = ("_is_released", "_slots", "_user")

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._user: str | None = None
        self._is_released = False

    def claim_user(self, user: str | None) -> None:
        """Count the connection as one of ``user``, and of no other user any more.

        :param user: ``None`` and ``""`` are no user: such connections are not counted.
        :raises HTTPException: the user has as many connections as one user may have (429). The connection
            still counts as one of the user before.
        """
        user = user or None
        if self._is_released or user == self._user:
            return
        if user is not None:
            self._slots.claim(user)
        if self._user is not None:
            self._slots.unclaim(self._user)
        self._user = user

    def release(self) -> None:
        """Give the slot back. A second call has no effect."""
        if self._is_released:
            return
        self.claim_user(None)
        self._is_released = True
        self._slots.give_back()
