"""A publication: one message in one channel, on its way from the engine to the subscribers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import count
from secrets import token_hex
from typing import NamedTuple, Self

from msgspec import DecodeError, Struct
from msgspec.msgpack import Decoder, Encoder
from msgspec.structs import replace
from pydantic_core import PydanticSerializationError, to_json

from hubbub.exceptions import InvalidChannel, InvalidData, InvalidPosition
from hubbub.types import Kind, check_utf8

MAX_CHANNEL_LENGTH = 255
MAX_KEY_LENGTH = 255

#: Begins the names of channels in which nodes talk to each other. No other channel's name can begin with it.
INTERNAL = "\x01"

# Control characters and line separators would forge lines in logs and in line-based protocols; a lone
# surrogate cannot be written as UTF-8.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# Up to 18 digits are less than 2**63, to which engines can count.
_POSITION = re.compile("([0-9]{1,18}):([!-~]{0,64})")


class Position(NamedTuple):
    """The position of a publication in its channel, from which a client can resume.

    ::

        position = await hub.publish("room:5", "hello")
        assert Position.parse(str(position)) == position
        newer = await hub.history("room:5", since=position)

    Offsets rise by one within an epoch. The epoch changes whenever earlier history cannot be trusted any
    more: it was lost, evicted or removed. A channel without history has no positions: its publications are
    delivered at most once, and all carry offset 0 and an empty epoch.

    ``str(position)`` is its *id*, ``OFFSET:EPOCH``, which clients keep and send back; :meth:`parse` reads it.
    """

    offset: int
    epoch: str

    def __str__(self) -> str:
        return "start" if self == START else f"{self.offset}:{self.epoch}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position whose id is ``text``; ``"start"`` is :data:`START`.

        :raises InvalidPosition: ``text`` is not the id of a position.
        """
        if text == "start":
            return cls(*START)
        if not (found := _POSITION.fullmatch(text)):
            shown = f"{text[:64]!r}…" if len(text) > 64 else repr(text)
            raise InvalidPosition(f"Expected the id of a position, such as '17:c0ffee42', but got {shown}.")
        return cls(int(found[1]), found[2])


#: The position before every publication of a channel, in any epoch.
START = Position(0, "")


class Publication(Struct, frozen=True, array_like=True):
    """One message in one channel.

    Engines carry it as MessagePack (:func:`pack`). It is an array there, so that fields can be added at the
    end: older readers ignore them, newer readers take the defaults.

    :param channel: the channel's name.
    :param data: the encoded payload; UTF-8 unless ``kind`` is ``"binary"``.
    :param kind: how the payload goes out.
    :param exclude: the id of the one connection that does not get it, usually the sender's.
    :param id: unique among all publications. It distinguishes publications that have the same position
        because an engine was set back to an earlier state.
    :param offset: see :class:`Position`; set by the engine.
    :param epoch: see :class:`Position`; set by the engine.
    :param time: when the engine accepted it, in seconds since 1970; set by the engine.
    """

    channel: str
    data: bytes
    kind: Kind
    exclude: str | None = None
    id: str = ""
    offset: int = 0
    epoch: str = ""
    time: float = 0.0

    @property
    def position(self) -> Position:
        """Its position; :data:`START` in a channel without history."""
        return Position(self.offset, self.epoch)

    def at(self, position: Position, time: float) -> Publication:
        """Return the publication as an engine has accepted it.

        :param time: seconds since 1970.
        """
        return replace(self, offset=position.offset, epoch=position.epoch, time=time)


_encoder = Encoder()
_decoder = Decoder(Publication)


def pack(publication: Publication) -> bytes:
    """Return ``publication`` as engines carry it."""
    return _encoder.encode(publication)


def unpack(packed: bytes) -> Publication:
    """Return the publication that :func:`pack` has packed.

    :raises InvalidData: it is not a publication. Another program writes where the engine reads, or a version
        of Hubbub that is not compatible with this one.
    """
    try:
        return _decoder.decode(packed)
    except DecodeError as exc:
        raise InvalidData(
            f"Expected a publication as Hubbub packs them, but got {packed[:64]!r}: {exc}."
        ) from exc


# Stands for this process. A child that is forked gets another object.
_process = object()


def _after_fork_in_child() -> None:
    global _process
    _process = object()


# Windows has no forks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def publication_ids() -> Iterator[str]:
    """Return an iterator over ids for publications, from which any thread may take.

    They are unique among all processes, also among processes that are forked later on.
    """
    return _Ids()


class _Ids(Iterator[str]):
    # A generator could not be used by several threads.

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._state = (_process, token_hex(6), count())

    def __next__(self) -> str:
        if self._state[0] is not _process:
            self._begin()
        _, prefix, numbers = self._state
        return f"{prefix}{next(numbers):x}"


def check_channel(name: str) -> str:
    """Return ``name`` if a channel can have it.

    :raises InvalidChannel: it is not a ``str``, is empty, is longer than 255 characters, or contains control
        characters.
    """
    if not isinstance(name, str):
        raise InvalidChannel(f"Expected a channel name as str, but got {type(name).__name__}.")
    if not name:
        raise InvalidChannel('Expected a channel name such as "chat" or "room:1", but got an empty string.')
    if len(name) > MAX_CHANNEL_LENGTH:
        raise InvalidChannel(
            f"Expected a channel name of at most {MAX_CHANNEL_LENGTH} characters, "
            f"but got {len(name)} that begin with {name[:32]!r}."
        )
    if found := _FORBIDDEN.search(name):
        raise InvalidChannel(
            f"Expected a channel name without control characters, but got {found[0]!r} "
            f"at index {found.start()} of {name!r}."
        )
    return name


def check_position(position: Position | str) -> Position:
    """Return ``position``, which may be given as its id.

    :raises InvalidPosition: it is a ``str`` that is not the id of a position; or its offset is negative or
        too large.
    :raises TypeError: it is neither a position nor a ``str``.
    """
    if isinstance(position, str):
        return Position.parse(position)
    if not isinstance(position, Position):
        raise TypeError(f"Expected a position or its id as text, but got {type(position).__name__}.")
    return Position.parse(str(position))


def check_key(key: str | None) -> str | None:
    """Return ``key`` if it is an idempotency key or ``None``.

    :raises TypeError: it is not a ``str``.
    :raises ValueError: it is empty, longer than 255 characters, or contains a character that not all engines
        can store: NUL or a lone surrogate.
    """
    if key is None:
        return None
    if not isinstance(key, str):
        raise TypeError(f"Expected an idempotency key as str, but got {type(key).__name__}.")
    if not key:
        raise ValueError("Expected an idempotency key, but got an empty string.")
    if len(key) > MAX_KEY_LENGTH:
        raise ValueError(
            f"Expected an idempotency key of at most {MAX_KEY_LENGTH} characters, "
            f"but got {len(key)} that begin with {key[:32]!r}."
        )
    if "\0" in key:
        raise ValueError(f"Expected an idempotency key without NUL, but got {key!r}.")
    return check_utf8("an idempotency key", key)


def encode(data: object) -> tuple[Kind, bytes]:
    """Encode ``data``: ``str`` as text, ``bytes`` as binary, anything else as JSON.

    JSON is written by pydantic, so models, dataclasses, datetimes, UUIDs and enums are encoded as in
    responses of FastAPI.

    :raises InvalidData: ``data`` cannot be written as JSON or as UTF-8.
    """
    try:
        if isinstance(data, str):
            return "text", data.encode()
    except UnicodeEncodeError as exc:
        raise InvalidData(f"Expected text that can be written as UTF-8, but got a str with {exc}.") from exc
    if isinstance(data, bytes | bytearray | memoryview):
        return "binary", bytes(data)
    return "json", encode_json(data)


def encode_json(data: object) -> bytes:
    """Encode ``data`` as JSON, as pydantic writes it.

    :raises InvalidData: ``data`` cannot be written as JSON.
    """
    try:
        return to_json(data, inf_nan_mode="null")
    except (PydanticSerializationError, ValueError) as exc:
        raise InvalidData(
            "Expected something that pydantic can write as JSON (a model, a dataclass, a dict, a list, a "
            f"number), but got {type(data).__name__}: {exc}"
        ) from exc
