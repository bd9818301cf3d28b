"""Limits: how much one connection may take, and how long it may take for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from hubbub.types import SlowConsumer, check_count, check_limit, check_seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one connection; ``Hub(...)`` describes the parameters.

    :param max_message_size: bytes.
    :param outbox_limit: bytes.
    :param slow_consumer: the policy for a client whose outbox is full.
    :param send_timeout: seconds.
    :param close_timeout: seconds.
    :param max_message_rate: messages a second; ``None``: no limit.
    :raises TypeError: a parameter has the wrong type.
    :raises ValueError: a parameter is out of range.
    """

    max_message_size: int
    outbox_limit: int
    slow_consumer: SlowConsumer
    send_timeout: float
    close_timeout: float
    max_message_rate: int | None = None

    def __post_init__(self) -> None:
        check_count("max_message_size", self.max_message_size, least=1)
        check_count("outbox_limit", self.outbox_limit, least=1)
        check_seconds("send_timeout", self.send_timeout)
        check_seconds("close_timeout", self.close_timeout)
        check_limit("max_message_rate", self.max_message_rate)
        if self.slow_consumer not in get_args(SlowConsumer):
            raise ValueError(
                f"Expected slow_consumer to be one of {get_args(SlowConsumer)}, but got "
                f"{self.slow_consumer!r}."
            )
