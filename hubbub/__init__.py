"""Real-time channels for FastAPI."""

from __future__ import annotations

from hubbub.connection import Connection
from hubbub.core.publication import Position
from hubbub.exceptions import (
    HubbubError,
    HubNotRunning,
    InvalidChannel,
    InvalidData,
    InvalidMessage,
    InvalidURL,
    MissingExtra,
)
from hubbub.hub import Hub, Stats

__version__ = "0.1.0"

__all__ = [
    "Connection",
    "Hub",
    "HubNotRunning",
    "HubbubError",
    "InvalidChannel",
    "InvalidData",
    "InvalidMessage",
    "InvalidURL",
    "MissingExtra",
    "Position",
    "Stats",
]
