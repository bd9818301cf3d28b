"""Codes that clients see: close codes of the socket, error codes in messages."""

from __future__ import annotations

from enum import IntEnum

#: A close frame's payload is at most 125 bytes, two of which are the code (:rfc:`6455#section-5.5`).
MAX_REASON_BYTES = 123


class CloseCode(IntEnum):
    """Close codes, from :rfc:`6455#section-7.4.1`, the IANA registry and, from 3000, Centrifuge's list."""

    NORMAL = 1000
    GOING_AWAY = 1001
    UNSUPPORTED_DATA = 1003
    #: Never sent: reported to the application when the peer vanishes without a close frame.
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    TOKEN_EXPIRED = 3005
    SLOW = 3008
    INSUFFICIENT_STATE = 3010
    INVALID_TOKEN = 3500
    FORCE_DISCONNECT = 3503
    PERMISSION_DENIED = 3507


class ErrorCode(IntEnum):
    """Codes in error messages to clients, from the Centrifuge client protocol."""

    INTERNAL = 100
    UNAUTHORIZED = 101
    UNKNOWN_CHANNEL = 102
    PERMISSION_DENIED = 103
    METHOD_NOT_FOUND = 104
    BAD_REQUEST = 107
    TOO_MANY_REQUESTS = 111


def is_sendable(code: int) -> bool:
    """Whether an endpoint may put ``code`` into a close frame (:rfc:`6455#section-7.4`).

    1004, 1005, 1006 and 1015 are reserved: endpoints report them to their own application.
    """
    return (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999


def check_code(code: int) -> int:
    """Return ``code`` if an endpoint may put it into a close frame.

    :raises ValueError: it may not.
    """
    if not is_sendable(code):
        raise ValueError(f"Expected a close code from 1000 to 1014 or from 3000 to 4999, but got {code}.")
    return code


def clip_reason(reason: str) -> str:
    """Cut ``reason``, between characters, to the bytes that fit into a close frame."""
    return reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")
