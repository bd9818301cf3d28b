"""Failures: the error that a client gets for an exception of a handler or a dependency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import ValidationException
from starlette.exceptions import HTTPException, WebSocketException

from hubbub.channels.injection import InvalidParameters
from hubbub.codes import ErrorCode
from hubbub.connection.decoding import clip_errors
from hubbub.exceptions import Denied, EngineUnavailable, InvalidMessage, InvalidPosition

#: The error codes that have a status of their own; the same in both directions.
_STATUS_OF_CODE: Mapping[int, int] = {
    ErrorCode.INTERNAL: 500,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.UNKNOWN_CHANNEL: 404,
    ErrorCode.PERMISSION_DENIED: 403,
    ErrorCode.METHOD_NOT_FOUND: 404,
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.TOO_MANY_REQUESTS: 429,
}
_CODE_OF_STATUS: Mapping[int, int] = {
    400: ErrorCode.BAD_REQUEST,
    422: ErrorCode.BAD_REQUEST,
    401: ErrorCode.UNAUTHORIZED,
    403: ErrorCode.PERMISSION_DENIED,
    404: ErrorCode.UNKNOWN_CHANNEL,
    429: ErrorCode.TOO_MANY_REQUESTS,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception, as clients see it.

    :param code: in an error message, on an open connection.
    :param status: of a response, before that.
    :param message: for people.
    :param detail: the ``detail`` of an ``HTTPException``.
    :param errors: of data that does not validate: ``loc``, ``msg`` and ``type`` of each.
    :param headers: of the response.
    :param is_internal: whether it is an error of the server, which belongs into its log.
    """

    code: int
    status: int
    message: str
    detail: Any = None
    errors: Sequence[Mapping[str, Any]] = ()
    headers: Mapping[str, str] | None = None
    is_internal: bool = False

    def as_message(self, **more: Any) -> dict[str, Any]:
        """Return the error message for an open connection.

        :param more: fields after ``type``.
        """
        message: dict[str, Any] = {"type": "error", **more, "code": self.code, "message": self.message}
        if self.errors:
            message["errors"] = self.errors
        if self.detail is not None and not isinstance(self.detail, str):
            message["detail"] = self.detail
        return message

    def as_response(self) -> HTTPException:
        """Return the exception that FastAPI answers with the status, before a connection is open."""
        detail: Any = self.message if self.detail is None else self.detail
        if self.errors:
            detail = self.errors
        return HTTPException(self.status, detail, None if self.headers is None else dict(self.headers))


def failure_of(exc: BaseException) -> Failure:
    """Return ``exc`` as clients see it."""
    match exc:
        case Denied():
            status = _STATUS_OF_CODE.get(exc.code, exc.code if 400 <= exc.code < 500 else 403)
            return Failure(exc.code, status, exc.message)
        case HTTPException():
            return _of_response(exc)
        case WebSocketException():
            # Before a connection is open. On an open one it closes the socket.
            message = exc.reason or "permission denied"
            return Failure(ErrorCode.PERMISSION_DENIED, 403, message)
        case InvalidMessage():
            return Failure(ErrorCode.BAD_REQUEST, 422, str(exc), errors=exc.errors)
        case InvalidPosition():
            return Failure(ErrorCode.BAD_REQUEST, 422, str(exc))
        case InvalidParameters():
            return _invalid(exc.errors)
        case ValidationException():
            # Its text has the path and the line of the handler.
            return _invalid(exc.errors())
        case EngineUnavailable():
            return Failure(ErrorCode.INTERNAL, 503, "the service is unavailable for the moment")
    return Failure(ErrorCode.INTERNAL, 500, "internal error", is_internal=True)


def _of_response(exc: HTTPException) -> Failure:
    status = exc.status_code
    if status >= 500:
        code: int = ErrorCode.INTERNAL
    else:
        code = _CODE_OF_STATUS.get(status, status)
    message = exc.detail if isinstance(exc.detail, str) else _phrase(status)
    return Failure(code, status, message, exc.detail, headers=exc.headers)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "error"


def _invalid(errors: Sequence[Any]) -> Failure:
    message = "Expected parameters that validate."
    return Failure(ErrorCode.BAD_REQUEST, 422, message, errors=clip_errors(errors))
