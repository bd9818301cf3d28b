"""Refusals: how many clients and messages a node has refused, by reason."""

from __future__ import annotations

from typing import get_args

from starlette.exceptions import HTTPException, WebSocketException

from hubbub.codes import CloseCode, ErrorCode
from hubbub.types import Refusal

#: The reasons behind the statuses, error codes and close codes of applications. The three do not overlap.
_REASONS: dict[int, Refusal] = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "unknown_channel",
    405: "bad_request",
    413: "message_size",
    415: "bad_request",
    422: "bad_request",
    429: "rate_limit",
    ErrorCode.BAD_REQUEST: "bad_request",
    ErrorCode.UNAUTHORIZED: "unauthorized",
    ErrorCode.PERMISSION_DENIED: "forbidden",
    ErrorCode.UNKNOWN_CHANNEL: "unknown_channel",
    ErrorCode.METHOD_NOT_FOUND: "bad_request",
    ErrorCode.TOO_MANY_REQUESTS: "rate_limit",
    CloseCode.INVALID_TOKEN: "unauthorized",
    CloseCode.TOKEN_EXPIRED: "expired",
    CloseCode.PERMISSION_DENIED: "forbidden",
}


class CountedRefusal(HTTPException):
    """A refusal by admission or by a limit, which is counted where it is raised."""


class CountedClose(WebSocketException):
    """A :class:`CountedRefusal` that is a close code, where no status can be sent."""


class Refusals:
    """Counts refusals. The reasons are a fixed set, so that clients cannot add to it."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = dict.fromkeys(get_args(Refusal), 0)

    def count(self, reason: Refusal) -> None:
        """Count one refusal for ``reason``.

        :raises KeyError: there is no such reason.
        """
        self._counts[reason] += 1

    def count_code(self, code: int) -> None:
        """Count one refusal by an application.

        Refusals by admission and by the limits of connections are counted where they are raised: they must
        not be counted again here.

        :param code: a status, an error code or a close code. A code that is no refusal, such as 500, is not
            counted.
        """
        if (reason := _REASONS.get(code)) is not None:
            self._counts[reason] += 1

    def counts(self) -> dict[str, int]:
        """Return the count of each reason."""
        return dict(self._counts)
