"""What nodes ask of one another, in a channel of their own.

The channel has a history, so that a node which the engine was away for gets what was asked meanwhile.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import DecodeError, Struct, msgpack

from hubbub.core.history import History
from hubbub.core.publication import INTERNAL
from hubbub.exceptions import InvalidData

#: The channel, and what it keeps.
CONTROL = f"{INTERNAL}control"
CONTROL_HISTORY = History(size=1000, ttl=60)


class Disconnect(Struct, frozen=True, tag="disconnect"):
    """Close connections.

    :param code: the close code they get.
    :param reason: the reason they get.
    :param user: all connections of this user.
    :param connection: the connection with this id.
    """

    code: int
    reason: str
    user: str | None = None
    connection: str | None = None


class Forget(Struct, frozen=True, tag="forget"):
    """Hand nothing more of a channel's history to clients: it has been removed.

    :param channel: the channel's name.
    """

    channel: str


#: What a node may ask of all others.
Command: TypeAlias = Disconnect | Forget

_encoder = msgpack.Encoder()
_decoder: msgpack.Decoder[Command] = msgpack.Decoder(Command)


def encode_command(command: Command) -> bytes:
    """``command`` as it travels."""
    return _encoder.encode(command)


def decode_command(packed: bytes) -> Command:
    """
    :raises InvalidData: it is none that this version knows.
    """
    try:
        return _decoder.decode(packed)
    except DecodeError as exc:
        raise InvalidData(f"Expected a command between nodes, but got {packed[:64]!r}: {exc}.") from exc
