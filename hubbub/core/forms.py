"""Forms: how publications are written to a subscriber.

A *codec* turns a publication into the bytes of one message. A *form* puts such messages into the carrier that
a transport takes: WebSocket frames, lines, events. Forms that differ in their carrier alone share a codec.

Subscribers are grouped by form. A publication is encoded at most once in each codec, and only if a subscriber
has a form of that codec; all subscribers of one form are handed the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hubbub.core.publication import Publication

if TYPE_CHECKING:
    from hubbub.core.frames import Batch, Frame, Message
    from hubbub.core.subscriber import Start


class Codec(Protocol):
    """Encodes publications, and the events of a channel that are none: joins, leaves."""

    def encode(self, publication: Publication) -> Message:
        """Return ``publication`` as one message."""

    def event(self, event: str, channel: str, fields: Mapping[str, Any]) -> Message:
        """Return an event of ``channel`` as one message.

        :param event: its type, such as ``"join"``.
        :param fields: its other fields, which can be written as JSON.
        """


class Form(Protocol):
    """How publications are written to a subscriber: a codec and a carrier. Forms are constants.

    A form belongs to a subscription: a subscriber may have one form in one channel and another
    form in another channel.
    """

    @property
    def codec(self) -> Codec:
        """The codec of its publications."""

    @property
    def reports_recovery(self) -> bool:
        """Whether :attr:`Start.recovered` reaches the client.

        If not, a subscriber whose position cannot be recovered does not join.
        """

    def batch(self, frames: Sequence[Frame], channel: str, *, lossless: bool) -> Batch:
        """Return the publications ``frames`` of ``channel`` in one batch.

        :param lossless: see :attr:`Batch.lossless`.
        """

    def reply(self, *messages: Message) -> Batch:
        """Return encoded messages in one batch, to be sent to one client directly."""

    def opening(self, channel: str, start: Start) -> Message | None:
        """Return the message with the position at which the client begins; ``None`` if the form has none."""
