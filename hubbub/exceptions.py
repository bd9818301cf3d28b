"""Exceptions: all that Hubbub raises by itself, and the standard exceptions that they also are.

::

    HubbubError
    ├── InvalidURL         (ValueError)       the URL names no engine, or one that does not fit
    ├── MissingExtra       (ImportError)      an engine, or metrics, need a package that is not installed
    ├── HubNotRunning      (RuntimeError)     the hub has not started, or has stopped
    ├── InvalidChannel     (ValueError)       a bad channel name, or a channel that is not declared like that
    ├── InvalidHandler     (TypeError)        a declared function that cannot be called as it is declared
    ├── InvalidPosition    (ValueError)       a text that is not the id of a position
    ├── InvalidData        (TypeError)        data that cannot be sent
    ├── EngineUnavailable  (ConnectionError)  the engine cannot be reached
    ├── Unrecoverable      (LookupError)      publications after a position are missing in the history
    ├── InvalidMessage     (ValueError)       a message from a client that the handler did not ask for
    └── Denied                                raised by handlers and dependencies: refuses the client
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hubbub.types import check_count

__all__ = [
    "Denied",
    "EngineUnavailable",
    "HubNotRunning",
    "HubbubError",
    "InvalidChannel",
    "InvalidData",
    "InvalidHandler",
    "InvalidMessage",
    "InvalidPosition",
    "InvalidURL",
    "MissingExtra",
    "Unrecoverable",
]


class HubbubError(Exception):
    """The base class of Hubbub's exceptions."""


class InvalidURL(HubbubError, ValueError):
    """The URL given to ``Hub`` names no engine, or one that does not fit.

    ``memory://`` reaches no other process, so it fits neither several workers nor a ``Publisher``.
    """


class MissingExtra(HubbubError, ImportError):
    """A package of an extra is not installed; the message names the extra to install."""


class HubNotRunning(HubbubError, RuntimeError):
    """A hub does not run, or runs on another event loop; or a publisher has been closed."""


class InvalidChannel(HubbubError, ValueError):
    """The channel cannot have this name, or is declared without a feature that the call needs.

    Names have 1 to 255 characters, none of them a control character.
    """


class InvalidHandler(HubbubError, TypeError):
    """A handler or one of its dependencies cannot be called as it is declared; the message names the mend."""


class InvalidPosition(HubbubError, ValueError):
    """The text is not the id of a position, such as ``"17:c0ffee42"``.

    Ids come from clients: not caught in a connection's block, this closes that connection with 1008.
    """


class InvalidData(HubbubError, TypeError):
    """The data is neither ``str`` nor ``bytes``, and cannot be written as JSON."""


class EngineUnavailable(HubbubError, ConnectionError):
    """The engine could not be reached in time.

    A publication may or may not have been accepted. To publish it again without doubling it, give it an
    ``idempotency_key``.
    """


class Unrecoverable(HubbubError, LookupError):
    """Publications after a position are missing in the history of a channel.

    They were too many or too old for the channel's ``History``, or the engine has lost or removed them.

    :param channel: the channel's name.
    :param offset: of the channel's present position.
    :param epoch: of the channel's present position.
    """

    def __init__(self, channel: str, offset: int, epoch: str) -> None:
        super().__init__(
            f"Expected the history of {channel!r} to reach back to the given position, but it does not. "
            f"Load the present state and continue from offset {offset}, epoch {epoch!r}."
        )
        self.channel = channel
        self.offset = offset
        self.epoch = epoch


class InvalidMessage(HubbubError, ValueError):
    """A client sent a message that the handler did not ask for.

    Not caught, it closes that client's connection with ``code``. The ``iter_*`` loops catch it, answer the
    client with an error message and continue.

    :param message: the expected and the received message; sent to the client.
    :param code: the WebSocket close code that fits (:rfc:`6455#section-7.4.1`).
    :param errors: for data that failed validation, one entry per field: ``loc``, ``msg``, ``type``.
    """

    def __init__(self, message: str, *, code: int, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.errors = errors


class Denied(HubbubError):
    """Raised by a handler or a dependency: it refuses the client.

    ::

        @room.on_subscribe
        async def enter(room_id: int, user: CurrentUser) -> None:
            if room_id not in user.rooms:
                raise Denied("not your room")

    On an open connection the client gets ``code`` and ``message`` in an error message. Before that, as with
    the POST door, it gets the status that belongs to the code: 401 for 101, 404 for 102, 400 for 107, 429 for
    111, 500 for 100, and 403 for any other.

    :param message: sent to the client.
    :param code: an error code of the Centrifuge client protocol (100 to 399), or one of the application from
        400 to 1999.
    :raises ValueError: ``code`` is out of range.
    :raises TypeError: ``message`` is not a ``str``, or ``code`` not an ``int``.
    """

    def __init__(self, message: str = "permission denied", *, code: int = 103) -> None:
        if not isinstance(message, str):
            raise TypeError(f"Expected a message as str, but got {type(message).__name__}.")
        check_count("code", code, least=100, most=1999)
        super().__init__(message)
        self.message = message
        self.code = int(code)
