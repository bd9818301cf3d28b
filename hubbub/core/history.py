"""History: the publications that a channel keeps, for clients that reconnect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hubbub.core.publication import Position, Publication
from hubbub.types import check_count, check_seconds

#: Publications that one channel can keep, and seconds for which it can keep them, on all engines.
MAX_SIZE = 2**31 - 1
MAX_TTL = 100 * 365.25 * 86_400


@dataclass(frozen=True, slots=True)
class History:
    """How many publications a channel keeps, and for how long, for clients that reconnect.

    ::

        hub.channel("room:{room_id}", history=History(size=200, ttl=3600))

    :param size: publications, of which the newest are kept; at most ``2**31 - 1``.
    :param ttl: seconds for which each publication is kept; at most 100 years.
    :raises TypeError: ``size`` is not an ``int``, or ``ttl`` not a number.
    :raises ValueError: a parameter is out of range.
    """

    size: int = 100
    ttl: float = 3600.0

    def __post_init__(self) -> None:
        check_count("size", self.size, least=1, most=MAX_SIZE)
        check_seconds("ttl", self.ttl, most=MAX_TTL)


class HistoryPage(NamedTuple):
    """A piece of a channel's history, read in one go.

    :param publications: in the order that was asked for, without a gap.
    :param position: the channel's position at the moment of the read. It may be after the last
        publication.
    """

    publications: Sequence[Publication]
    position: Position
