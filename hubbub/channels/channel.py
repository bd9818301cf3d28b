"""Channel: a channel as handlers see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Channel:
    """The channel that a handler is called for. Handlers get it by annotation.

    ::

        @room.on_publish
        async def say(message: Say, channel: Channel) -> Said:
            return Said(text=message.text, room=channel.params["room_id"])

    :param name: the channel's name, such as ``"room:5"``.
    :param params: the parameters of the declared pattern, such as ``{"room_id": "5"}``.
    """

    name: str
    params: Mapping[str, str] = field(default_factory=dict)
