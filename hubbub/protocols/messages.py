"""Messages of Hubbub's own among the publications of a channel: ``subscribed``, ``join``, ``expiring``, ….

They are JSON objects with a ``type``. To a client with several channels they also name the channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Raw, json

from hubbub.core.publication import START, Position
from hubbub.core.subscriber import Start


def encode_message(type_: str, channel: str | None, fields: Mapping[str, Any]) -> bytes:
    """Return a message as JSON.

    :param type_: its ``type``.
    :param channel: ``None`` for a client that has one channel only, and knows it.
    :param fields: follow in this order.
    """
    named = {} if channel is None else {"channel": channel}
    return json.encode({"type": type_, **named, **fields})


def opening_fields(start: Start) -> dict[str, Any]:
    """Return the fields of ``subscribed``, with which a subscription begins."""
    fields: dict[str, Any] = {"id": position_id(start.position)}
    if start.recovered is not None:
        fields["recovered"] = start.recovered
    if start.snapshot is not None:
        fields["data"] = Raw(start.snapshot)
    return fields


def position_id(position: Position) -> str | None:
    """Return the id of ``position``; ``None`` in a channel without history, which has no positions."""
    return None if position == START else str(position)
