"""Messages as tests compare them: instances of a model, parsed JSON, text or bytes."""

from __future__ import annotations

from typing import Any

from hubbub.connection.decoding import as_model, excerpt
from hubbub.exceptions import InvalidMessage

#: Characters of a message in the text of an exception.
EXCERPT = 500


def decode(data: str | bytes, model: Any = None) -> Any:
    """Return ``data`` as an instance of ``model``.

    :param model: a pydantic model, or any other type that pydantic validates; ``str`` and ``bytes`` stand for
        the message as it is; ``None`` for parsed JSON, or for the message as it is if it is not JSON.
    :raises AssertionError: it does not fit.
    """
    if model is bytes or model is str:
        if type(data) is model:
            return data
        raise AssertionError(f"Expected a message as {model.__name__}, but got {describe(data)}.")
    try:
        # A binary message is not JSON, though it may look like it.
        if model is None:
            return data if isinstance(data, bytes) else as_model(Any)(data)
        return as_model(model)(data)
    except InvalidMessage as exc:
        if model is None:
            return data
        raise AssertionError(f"{str(exc).removesuffix('.')}; it is {describe(data)}.") from None


def describe(data: str | bytes | None) -> str:
    """Return ``data``, cut if it is long, for the text of an exception."""
    if data is None:
        return "nothing"
    return excerpt(data if isinstance(data, str) else repr(data), EXCERPT)
