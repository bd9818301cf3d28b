"""Control: the commands that nodes send one another, in a channel of their own.

The channel has a history, so that a node gets the commands that were sent while it had lost the engine.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import DecodeError, Struct, msgpack

from hubbub.core.history import History
from hubbub.core.publication import INTERNAL
from hubbub.exceptions import InvalidData

#: The control channel and its history.
CONTROL = f"{INTERNAL}control"
CONTROL_HISTORY = History(size=1000, ttl=60)


class Disconnect(Struct, frozen=True, tag="disconnect"):
    """Close connections: all those of a user, or one.

    :param code: the close code.
    :param reason: the reason in the close frame.
    :param user: the user whose connections are closed.
    :param connection: the id of the connection that is closed.
    """

    code: int
    reason: str
    user: str | None = None
    connection: str | None = None


class Forget(Struct, frozen=True, tag="forget"):
    """Forget the history of a channel: it has been removed, and no client may resume from it.

    :param channel: the channel's name.
    """

    channel: str


class Recheck(Struct, frozen=True, tag="recheck"):
    """Check the permissions of a user's connections again.

    :param user: the user, whose permissions have changed.
    """

    user: str


#: A command to all nodes.
Command: TypeAlias = Disconnect | Forget | Recheck

_encoder = msgpack.Encoder()
_decoder: msgpack.Decoder[Command] = msgpack.Decoder(Command)


def encode_command(command: Command) -> bytes:
    """Encode ``command`` for the control channel."""
    return _encoder.encode(command)


def decode_command(packed: bytes) -> Command:
    """Decode a command from the control channel.

    :raises InvalidData: this version does not know the command.
    """
    try:
        return _decoder.decode(packed)
    except DecodeError as exc:
        raise InvalidData(
            f"Expected a command that this version knows, but got {packed[:64]!r}: {exc}."
        ) from exc
