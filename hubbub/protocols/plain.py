"""The plain form: a publication goes out as it was published, with nothing around it."""

from __future__ import annotations

from hubbub.core.forms import Codec, Form
from hubbub.core.publication import Publication
from hubbub.core.subscriber import Start
from hubbub.protocols.websocket import WebSocketForm, WebSocketMessage


class PlainCodec:
    """Leaves publications as they are."""

    def encode(self, publication: Publication) -> WebSocketMessage:
        return WebSocketMessage(publication.kind, publication.data, publication)


class Plain(WebSocketForm):
    """Each publication in a WebSocket frame of its own, as it was published."""

    codec: Codec = PlainCodec()
    reports_recovery = False

    def opening(self, channel: str, start: Start) -> None:
        return None


PLAIN: Form = Plain()
