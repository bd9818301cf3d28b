"""The plain form: a publication goes out as it was published, with nothing around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubbub.core.forms import Codec, Form
from hubbub.core.publication import Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.messages import encode_message
from hubbub.protocols.websocket import WebSocketForm, WebSocketMessage


class PlainCodec:
    """Leaves publications as they are.

    :param names_channel: whether other messages name their channel.
    """

    def __init__(self, *, names_channel: bool) -> None:
        self._names_channel = names_channel

    def encode(self, publication: Publication) -> WebSocketMessage:
        return WebSocketMessage(publication.kind, publication.data, publication)

    def event(self, event: str, channel: str, fields: Mapping[str, Any]) -> WebSocketMessage:
        named = channel if self._names_channel else None
        return WebSocketMessage("json", encode_message(event, named, fields))


class Plain(WebSocketForm):
    """Each publication in a WebSocket frame of its own, as it was published.

    :param names_channel: whether other messages, such as joins, name their channel.
    """

    reports_recovery = False

    def __init__(self, *, names_channel: bool) -> None:
        self.codec: Codec = PlainCodec(names_channel=names_channel)

    def opening(self, channel: str, start: Start) -> None:
        return None


#: For connections, which have any number of channels.
PLAIN: Form = Plain(names_channel=True)
#: For doors, which have one channel.
DOOR_PLAIN: Form = Plain(names_channel=False)
