"""Decoding: a client's message as text, bytes, JSON or a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from hubbub.codes import CloseCode
from hubbub.exceptions import InvalidMessage

T = TypeVar("T")

#: Fields named in one error message, so that a message with a thousand bad fields is not answered with all.
MAX_ERRORS = 10

#: Errors above which none is named: pydantic describes all of them or none, each in some microseconds.
MAX_DESCRIBED = 100

#: Characters of a message, and of each part of a location, in the answer to a client. Both may contain text
#: from the client.
MAX_TEXT = 200
MAX_PART = 64

#: Bytes that the locations of all errors of a message may take. pydantic builds them for each error, before
#: the errors can be counted: 300 KB of nested lists would take seconds and gigabytes.
MAX_LOCATIONS = 67_108_864

#: Bytes that one level of nesting takes in a location, apart from its name.
LEVEL = 32

#: Bytes and characters below which no message can reach ``MAX_LOCATIONS``.
HARMLESS = 16_384

#: Models whose validators are kept; each takes 100 µs and more to build.
CACHED_MODELS = 256

_ESCAPE = re.compile(r"\\.", re.DOTALL)
_TOKEN = re.compile(r'"([^"]*)"(\s*:)?|[\[\]{}]')
_BRACKET = re.compile(r"[\[\]{}]")


def as_text(data: str | bytes) -> str:
    """Return ``data`` if it is from a text frame.

    :raises InvalidMessage: it is from a binary frame; 1003.
    """
    if isinstance(data, str):
        return data
    raise InvalidMessage(
        f"Expected a text frame, but got a binary frame of {len(data)} bytes.",
        code=CloseCode.UNSUPPORTED_DATA,
    )


def as_bytes(data: str | bytes) -> bytes:
    """Return ``data`` if it is from a binary frame.

    :raises InvalidMessage: it is from a text frame; 1003.
    """
    if isinstance(data, bytes):
        return data
    raise InvalidMessage(
        f"Expected a binary frame, but got a text frame of {len(data)} characters.",
        code=CloseCode.UNSUPPORTED_DATA,
    )


def as_json(data: str | bytes) -> Any:
    """Parse ``data`` as JSON.

    :raises InvalidMessage: it is not JSON; 1007.
    """
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidMessage(
            f"Expected JSON, but got other data: {exc}.", code=CloseCode.INVALID_DATA
        ) from exc


def as_model(model: type[T] | TypeAdapter[T]) -> Callable[[str | bytes], T]:
    """Return a function that parses JSON into ``model``.

    It raises :class:`InvalidMessage` (1007) for JSON that does not fit.
    """
    adapter: TypeAdapter[T] = _adapter(model)

    def parse(data: str | bytes) -> T:
        if len(data) > HARMLESS:
            _check_locations(data)
        try:
            return adapter.validate_json(data)
        except ValidationError as exc:
            invalid = _invalid(exc)
        # Not from within: the traceback would show all that the client has sent.
        raise invalid

    return parse


def _adapter(model: Any) -> TypeAdapter[Any]:
    if isinstance(model, TypeAdapter):
        return model
    try:
        # ``int | str`` equals ``str | int``, and validates otherwise.
        return _cached_adapter(model, repr(model))
    except TypeError:
        # Not hashable, as types with some annotations are; or not a type, for which this raises once more.
        return TypeAdapter(model)


@lru_cache(CACHED_MODELS)
def _cached_adapter(model: Any, text: str) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def exceeds(data: str | bytes, limit: int) -> bool:
    """Whether ``data`` takes more than ``limit`` bytes in UTF-8, which has up to four for a character."""
    if len(data) > limit:
        return True
    return isinstance(data, str) and len(data) * 4 > limit and len(data.encode()) > limit


def _check_locations(data: str | bytes) -> None:
    """Check that the locations of errors in ``data`` cannot take more than ``MAX_LOCATIONS``.

    :raises InvalidMessage: they could; 1007.
    """
    text = data if isinstance(data, str) else data.decode("latin-1")
    if "\\" in text:
        text = _ESCAPE.sub("_", text)
    parts = text.split('"')
    strings, outside = parts[1::2], "".join(parts[::2])
    values = outside.count(",") + 1
    levels = max(accumulate(1 if each in "[{" else -1 for each in _BRACKET.findall(outside)), default=0)
    # An upper bound: any of the strings may be a name, and may be one at each level.
    names = min(levels * max(map(len, strings), default=0), len(text))
    if values * (names + levels * LEVEL) <= MAX_LOCATIONS:
        return
    longest = _longest_location(text)
    if values * longest > MAX_LOCATIONS:
        raise InvalidMessage(
            f"Expected a message with fewer values, less nesting or shorter names, but got {values} values "
            f"and locations of {longest} bytes.",
            code=CloseCode.INVALID_DATA,
        )


def _longest_location(text: str) -> int:
    """Return the bytes of the longest location in JSON without escapes.

    Of a name that occurs twice, both count.
    """
    longest = name = 0
    # Bytes of the location of each open container.
    sizes = [0]
    for match in _TOKEN.finditer(text):
        if match[2]:
            name = len(match[1])
        elif match[0] in "[{":
            sizes.append(sizes[-1] + name + LEVEL)
            name = 0
        elif match[0] in "]}":
            sizes.pop()
            if not sizes:
                # Not JSON: validation says so.
                break
        longest = max(longest, sizes[-1] + name + LEVEL)
    return longest


def _invalid(exc: ValidationError) -> InvalidMessage:
    # pydantic calls a union "tagged-union[Say,Typing]".
    model = re.sub(r"^(?:tagged-)?union\[(.*)\]$", r"one of \1", exc.title).replace(",", ", ")
    expected = f"Expected a message that fits {model}, but got"
    count = exc.error_count()
    if count > MAX_DESCRIBED:
        return InvalidMessage(
            f"{expected} one with {count} errors.",
            code=CloseCode.INVALID_DATA,
        )
    errors = clip_errors(exc.errors(include_url=False, include_context=False, include_input=False))
    named = "; ".join(
        ": ".join(filter(None, [".".join(map(str, each["loc"])), each["msg"]])) for each in errors
    )
    return InvalidMessage(f"{expected} one with errors: {named}.", code=CloseCode.INVALID_DATA, errors=errors)


def clip_errors(errors: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the part of validation errors that a client sees, clipped: never the input.

    :param errors: as pydantic describes them.
    :return: ``type``, ``loc`` and ``msg`` of the first ones.
    """
    return [
        {
            "type": str(error.get("type", "")),
            "loc": tuple(
                excerpt(part, MAX_PART) if isinstance(part, str) else part
                for part in error.get("loc", ())[:MAX_ERRORS]
            ),
            "msg": excerpt(str(error.get("msg", "")), MAX_TEXT),
        }
        for error in errors[:MAX_ERRORS]
    ]


def excerpt(text: str, length: int) -> str:
    """Return at most ``length`` characters of ``text``: without its middle, if it is longer.

    Characters that are not printable are escaped.
    """
    if len(text) > length:
        half = length // 2
        text = f"{text[:half]}…{text[-half:]}"
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
