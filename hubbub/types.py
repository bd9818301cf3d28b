"""The types that several modules share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

#: How a message goes out: a text frame, a binary frame, or a text frame that holds JSON.
Kind: TypeAlias = Literal["text", "binary", "json"]

#: What happens to a client that reads more slowly than its channels publish; see ``core/outbox.py``.
SlowConsumer: TypeAlias = Literal["disconnect", "drop_oldest", "latest"]


@dataclass(frozen=True, slots=True)
class History:
    """What a channel keeps of what was published to it, so that a client that was away can catch up.

    :param size: publications kept, the newest ones.
    :param ttl: seconds that each of them is kept.
    :raises ValueError: one of them is not greater than 0.
    """

    size: int = 100
    ttl: float = 3600.0

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("ttl", self.ttl)):
            if not value > 0:
                raise ValueError(f"Expected {name} to be greater than 0, but got {value!r}.")
