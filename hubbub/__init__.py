"""Real-time channels for FastAPI."""

from __future__ import annotations

from hubbub.channels.channel import Channel
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.connection.connection import Connection
from hubbub.core.history import History
from hubbub.core.publication import Position, Publication
from hubbub.exceptions import (
    Denied,
    EngineUnavailable,
    HubbubError,
    HubNotRunning,
    InvalidChannel,
    InvalidData,
    InvalidHandler,
    InvalidMessage,
    InvalidPosition,
    InvalidURL,
    MissingExtra,
    Unrecoverable,
)
from hubbub.hub import Hub
from hubbub.publisher import Publisher
from hubbub.types import Health, Identity, Presence, PresenceEntry, Stats

__version__ = "0.1.0"

__all__ = [
    "Channel",
    "ChannelDeclaration",
    "Connection",
    "Denied",
    "EngineUnavailable",
    "Health",
    "History",
    "Hub",
    "HubNotRunning",
    "HubbubError",
    "Identity",
    "InvalidChannel",
    "InvalidData",
    "InvalidHandler",
    "InvalidMessage",
    "InvalidPosition",
    "InvalidURL",
    "MissingExtra",
    "Position",
    "Presence",
    "PresenceEntry",
    "Publication",
    "Publisher",
    "Stats",
    "Unrecoverable",
]
