"""What a client sent, made into what the handler asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from hubbub.codes import CloseCode
from hubbub.exceptions import InvalidMessage

T = TypeVar("T")

#: Fields named in one error message; a message with a thousand bad fields is not answered with all.
MAX_ERRORS = 10


def as_text(data: str | bytes) -> str:
    """``data`` if it is from a text frame.

    :raises InvalidMessage: it is from a binary frame; 1003.
    """
    if isinstance(data, str):
        return data
    raise InvalidMessage(
        f"Expected a text frame, but got a binary frame of {len(data)} bytes.",
        code=CloseCode.UNSUPPORTED_DATA,
    )


def as_bytes(data: str | bytes) -> bytes:
    """``data`` if it is from a binary frame.

    :raises InvalidMessage: it is from a text frame; 1003.
    """
    if isinstance(data, bytes):
        return data
    raise InvalidMessage(
        f"Expected a binary frame, but got a text frame of {len(data)} characters.",
        code=CloseCode.UNSUPPORTED_DATA,
    )


def as_json(data: str | bytes) -> Any:
    """``data`` parsed.

    :raises InvalidMessage: it is not JSON; 1007.
    """
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidMessage(f"Expected JSON, but it is none: {exc}.", code=CloseCode.INVALID_DATA) from exc


def as_model(model: type[T] | TypeAdapter[T]) -> Callable[[str | bytes], T]:
    """A function that parses JSON into ``model``, and raises :class:`InvalidMessage` (1007) if it does not
    fit."""
    adapter = model if isinstance(model, TypeAdapter) else TypeAdapter(model)

    def parse(data: str | bytes) -> T:
        try:
            return adapter.validate_json(data)
        except ValidationError as exc:
            raise _invalid(exc) from exc

    return parse


def exceeds(data: str | bytes, limit: int) -> bool:
    """Whether ``data`` is longer than ``limit`` bytes. A character takes up to four of them in UTF-8."""
    if len(data) > limit:
        return True
    return isinstance(data, str) and len(data) * 4 > limit and len(data.encode()) > limit


def _invalid(exc: ValidationError) -> InvalidMessage:
    # pydantic calls a union "tagged-union[Say,Typing]".
    model = re.sub(r"^(?:tagged-)?union\[(.*)\]$", r"one of \1", exc.title)
    errors = exc.errors(include_url=False, include_context=False, include_input=False)
    named = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'message'}: {e['msg']}" for e in errors[:MAX_ERRORS])
    return InvalidMessage(
        f"Expected a message that fits {model}, but {named}.",
        code=CloseCode.INVALID_DATA,
        errors=[dict(error) for error in errors[:MAX_ERRORS]],
    )
