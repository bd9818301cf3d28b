"""Results: the value that a handler returns, validated against its annotation and encoded.

As with a response model of FastAPI: the annotation decides which fields leave the server, also
when the handler returns an object that has more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError

from hubbub.channels.signature import Signature
from hubbub.core.publication import encode, encode_json
from hubbub.exceptions import InvalidHandler
from hubbub.types import Kind


class InvalidResult(TypeError):
    """A handler has returned a value that does not fit its annotation."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded result.

    :param kind: how it is sent.
    :param data: the payload.
    """

    kind: Kind
    data: bytes


def encoder(signature: Signature) -> Callable[[Any], Encoded | None]:
    """Return the function that validates and encodes the result of a handler.

    ``str`` becomes text, ``bytes`` binary, anything else JSON, as in :meth:`hubbub.Hub.publish`. ``None``
    stays ``None``.

    :raises InvalidHandler: pydantic cannot validate the annotation of the result.
    """
    annotation = signature.returns
    if annotation is inspect.Signature.empty or annotation is Any:
        return _encode_any
    adapter = _adapter(signature)

    def encode_result(result: Any) -> Encoded | None:
        value = _validate(adapter, result, signature)
        if value is None:
            return None
        if isinstance(value, str | bytes):
            return Encoded(*encode(value))
        return Encoded("json", _dump(adapter, value, signature))

    return encode_result


def json_encoder(signature: Signature) -> Callable[[Any], bytes]:
    """Return the function that validates a result and encodes it as JSON, also ``str`` and ``None``.

    :raises InvalidHandler: pydantic cannot validate the annotation of the result.
    """
    annotation = signature.returns
    if annotation is inspect.Signature.empty or annotation is Any:
        return encode_json
    adapter = _adapter(signature)

    def encode_result(result: Any) -> bytes:
        return _dump(adapter, _validate(adapter, result, signature), signature)

    return encode_result


def _encode_any(result: Any) -> Encoded | None:
    return None if result is None else Encoded(*encode(result))


def _adapter(signature: Signature) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(signature.returns)
    except (PydanticUserError, TypeError, NameError) as exc:
        raise InvalidHandler(
            f"Expected {signature.purpose} handler {signature.name}() to return a type that pydantic can "
            f"validate, but its annotation is {signature.returns!r}: {exc}"
        ) from exc


def _validate(adapter: TypeAdapter[Any], result: Any, signature: Signature) -> Any:
    try:
        return adapter.validate_python(result, from_attributes=True)
    except ValidationError as exc:
        reason = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
            for error in exc.errors(include_url=False, include_context=False, include_input=False)[:3]
        )
    # Not from within: the traceback would show the value, which may be secret.
    raise InvalidResult(
        f"Expected {signature.name}() to return {signature.returns!r}, but got {type(result).__name__} "
        f"({reason})."
    )


def _dump(adapter: TypeAdapter[Any], value: Any, signature: Signature) -> bytes:
    try:
        return adapter.dump_json(value, by_alias=True)
    except (PydanticSerializationError, ValueError) as exc:
        raise InvalidResult(
            f"Expected {signature.name}() to return a value that can be written as JSON, but got "
            f"{type(value).__name__}: {exc}"
        ) from exc
