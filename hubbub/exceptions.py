"""Everything Hubbub raises.

::

    HubbubError
    ├── InvalidURL            (ValueError)    the URL given to Hub names no engine
    ├── MissingExtra          (ImportError)   the engine needs a package that is not installed
    ├── HubNotRunning         (RuntimeError)  the hub has not started, or has stopped
    ├── InvalidChannel        (ValueError)    not a name a channel can have
    ├── InvalidData           (TypeError)     not something that can be sent
    └── InvalidMessage        (ValueError)    a client sent what the handler did not ask for
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "HubNotRunning",
    "HubbubError",
    "InvalidChannel",
    "InvalidData",
    "InvalidMessage",
    "InvalidURL",
    "MissingExtra",
]


class HubbubError(Exception):
    """The base of everything Hubbub raises."""


class InvalidURL(HubbubError, ValueError):
    """The URL given to ``Hub`` names no engine."""


class MissingExtra(HubbubError, ImportError):
    """The engine named by the URL needs a package that is not installed; the message says which extra."""


class HubNotRunning(HubbubError, RuntimeError):
    """The hub was used before it started, after it stopped, or on another event loop than its own."""


class InvalidChannel(HubbubError, ValueError):
    """The name is empty, too long, or has characters that a channel name may not have."""


class InvalidData(HubbubError, TypeError):
    """The data is neither ``str`` nor ``bytes`` nor anything that can be written as JSON."""


class InvalidMessage(HubbubError, ValueError):
    """A client sent something else than the handler asked for.

    Left uncaught, it closes that client's connection with ``code``; the ``iter_*`` loops catch it, answer
    the client with an error message and go on.

    :param message: what was expected and what came; sent to the client.
    :param code: the WebSocket close code that fits (:rfc:`6455#section-7.4.1`).
    :param errors: for data that failed validation, one entry per field: ``loc``, ``msg``, ``type``.
    """

    def __init__(self, message: str, *, code: int, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.errors = errors
