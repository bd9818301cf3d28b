"""Real-time channels for FastAPI."""

from __future__ import annotations

from hubbub.channels.channel import Channel
from hubbub.channels.collection import Channels
from hubbub.channels.current import CurrentChannel, CurrentConnection, CurrentIdentity
from hubbub.channels.declaration import ChannelDeclaration
from hubbub.channels.rate_limit import RateLimit
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
from hubbub.security.jwt import JWT
from hubbub.security.tokens import ConnectToken
from hubbub.types import Health, Identity, Presence, PresenceEntry, Stats

__version__ = "0.1.0"

__all__ = [
    "JWT",
    "Channel",
    "ChannelDeclaration",
    "Channels",
    "ConnectToken",
    "Connection",
    "CurrentChannel",
    "CurrentConnection",
    "CurrentIdentity",
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
    "RateLimit",
    "Stats",
    "Unrecoverable",
]
