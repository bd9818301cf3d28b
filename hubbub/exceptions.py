"""Everything Hubbub raises.

::

    HubbubError
    ├── InvalidURL            (ValueError)    the URL given to Hub names no engine, or none that fits
    ├── MissingExtra          (ImportError)   the engine needs a package that is not installed
    ├── HubNotRunning         (RuntimeError)  the hub has not started, or has stopped
    ├── InvalidChannel        (ValueError)    not a name a channel can have, or not declared as it is used
    ├── InvalidPosition       (ValueError)    not the id of a position
    ├── InvalidData           (TypeError)     not something that can be sent
    ├── EngineUnavailable     (ConnectionError)  the engine cannot be reached
    ├── Unrecoverable         (LookupError)   what was missed since a position is not there any more
    └── InvalidMessage        (ValueError)    a client sent what the handler did not ask for
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "EngineUnavailable",
    "HubNotRunning",
    "HubbubError",
    "InvalidChannel",
    "InvalidData",
    "InvalidMessage",
    "InvalidPosition",
    "InvalidURL",
    "MissingExtra",
    "Unrecoverable",
]


class HubbubError(Exception):
    """The base of everything Hubbub raises."""


class InvalidURL(HubbubError, ValueError):
    """The URL given to ``Hub`` names no engine, or one that does not fit: ``memory://`` reaches no other
    process, so it fits neither several workers nor a ``Publisher``."""


class MissingExtra(HubbubError, ImportError):
    """The engine named by the URL needs a package that is not installed; the message says which extra."""


class HubNotRunning(HubbubError, RuntimeError):
    """The hub was used before it started, after it stopped, or on another event loop than its own; or a
    publisher after it was closed."""


class InvalidChannel(HubbubError, ValueError):
    """The name is empty, too long, or has characters that a channel name may not have; or the channel is not
    declared with what is asked of it, such as a history."""


class InvalidPosition(HubbubError, ValueError):
    """The text is not the id of a position, such as ``"17:c0ffee42"``. Ids come from clients: left uncaught,
    it closes that client's connection with 1008."""


class InvalidData(HubbubError, TypeError):
    """The data is neither ``str`` nor ``bytes`` nor anything that can be written as JSON."""


class EngineUnavailable(HubbubError, ConnectionError):
    """The engine could not be reached in time. What was being published may or may not have been accepted; to
    publish it again without doubling it, give it an ``idempotency_key``."""


class Unrecoverable(HubbubError, LookupError):
    """What was published since a position is not, or not all, there any more: too much, too long ago, or the
    engine has lost or removed it.

    :param channel: the channel's name.
    :param offset: where the channel stands now.
    :param epoch: likewise.
    """

    def __init__(self, channel: str, offset: int, epoch: str) -> None:
        super().__init__(
            f"Expected the history of {channel!r} to reach back to the given position, but it does not. "
            f"Load the present state and go on from offset {offset}, epoch {epoch!r}."
        )
        self.channel = channel
        self.offset = offset
        self.epoch = epoch


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
