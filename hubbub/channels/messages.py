"""Messages: finds the handler for a message of a client, by the ``type`` of its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from msgspec import DecodeError, Struct, json
from pydantic import BaseModel

from hubbub.channels.signature import Signature, is_structured, members, type_name, unwrap
from hubbub.codes import CloseCode
from hubbub.connection.decoding import as_json, as_model, excerpt
from hubbub.exceptions import InvalidHandler, InvalidMessage

H = TypeVar("H")

#: Types of messages that doors handle themselves.
RESERVED = ("rpc", "refresh")

#: Types that an error message names.
MAX_NAMED = 10


class _Typed(Struct):
    """The ``type`` of a JSON object, read without the rest."""

    type: str | None = None


_type_of = json.Decoder(_Typed).decode


class MessageTable(Generic[H]):
    """The handlers of a channel, by the messages that they take.

    :param pattern: of the channels, for messages.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        #: The handler of text frames as they are.
        self.text: H | None = None
        #: The handler of binary frames.
        self.binary: H | None = None
        # By the ``type`` of a message: its handler and the function that parses it.
        self._typed: dict[str, tuple[H, Callable[[str | bytes], Any]]] = {}
        # The handler of messages without a known ``type``: there is only one handler.
        self._only: tuple[H, Callable[[str | bytes], Any]] | None = None
        self._names: list[str] = []

    def __iter__(self) -> Iterator[H]:
        """Yield each handler once."""
        found: list[H | None] = [self.text, self.binary, *(handler for handler, _ in self._typed.values())]
        if self._only is not None:
            found.append(self._only[0])
        seen: list[int] = []
        for handler in found:
            if handler is not None and id(handler) not in seen:
                seen.append(id(handler))
                yield handler

    @property
    def takes_json(self) -> bool:
        """Whether text frames are JSON: there are handlers for models, or none for text."""
        return self.text is None

    @property
    def has_models(self) -> bool:
        """Whether there is a handler for JSON."""
        return self._only is not None or bool(self._typed)

    def add(self, handler: H, signature: Signature) -> None:
        """Add the handler with ``signature``.

        :raises InvalidHandler: the message could not be told from those of another handler.
        """
        annotation = unwrap(signature.message_type)
        name = f"{signature.name}()"
        if annotation is str or annotation is bytes:
            is_text = annotation is str
            if is_text and self.has_models:
                raise self._both(name)
            if (self.text if is_text else self.binary) is not None:
                raise InvalidHandler(
                    f"Expected one on_publish handler for {annotation.__name__} in {self._pattern}, but "
                    f"{name} is the second. Remove one."
                )
            if is_text:
                self.text = handler
            else:
                self.binary = handler
            self._names.append(name)
            return
        if self.text is not None:
            raise self._both(name)
        self._add_model(handler, signature, name)

    def find(self, data: str | bytes, kind: str | None) -> tuple[H, Callable[[str | bytes], Any]]:
        """Return the handler for JSON, and the function that parses its message.

        :param kind: the ``type`` of the message, from :func:`peek`.
        :raises InvalidMessage: the data is not JSON, or no handler takes it.
        """
        if kind is not None and (typed := self._typed.get(kind)) is not None:
            return typed
        if self._only is not None:
            # Its model decides about messages without a type.
            return self._only
        if kind is None:
            as_json(data)
        known = ", ".join(map(repr, list(self._typed)[:MAX_NAMED]))
        found = "none" if kind is None else excerpt(repr(kind), 64)
        error = "missing" if kind is None else "literal_error"
        raise InvalidMessage(
            f"Expected a message with one of the types {known}, but got {found}.",
            code=CloseCode.INVALID_DATA,
            errors=[{"type": error, "loc": ("type",), "msg": f"Input should be one of {known}"}],
        )

    # Internal

    def _add_model(self, handler: H, signature: Signature, name: str) -> None:
        by_type = models_by_type(signature.message_type)
        if self.has_models and (by_type is None or not self._typed):
            raise self._untyped(name if by_type is None else self._names[-1])
        for kind in by_type or ():
            self._check_kind(kind, name)
        for kind, model in (by_type or {}).items():
            # Not the union: an error names the fields of this model alone.
            self._typed[kind] = (handler, as_model(model))
        # A single handler takes messages without a type as its model does.
        is_only = self._only is None and len({id(each) for each, _ in self._typed.values()}) < 2
        self._only = (handler, as_model(signature.message_type)) if is_only else None
        self._names.append(name)

    def _check_kind(self, kind: str, name: str) -> None:
        if kind in RESERVED:
            raise InvalidHandler(
                f"Expected messages of {name} to have a type of your own, but {kind!r} is one of Hubbub's. "
                "Choose another."
            )
        if kind in self._typed:
            raise InvalidHandler(
                f"Expected one handler for messages of the type {kind!r} in {self._pattern}, but {name} is "
                "the second. Give their models different types."
            )

    def _both(self, name: str) -> InvalidHandler:
        return InvalidHandler(
            f"Expected the handlers of {self._pattern} to take either str or models, but {name} and "
            f"{', '.join(self._names)} take both. Text could not be told from JSON: use models."
        )

    def _untyped(self, name: str) -> InvalidHandler:
        return InvalidHandler(
            f"Expected each model of {self._pattern} to have a type, because there are several handlers, "
            f'but that of {name} has none. Add it: type: Literal["…"] = "…".'
        )


def peek(data: str | bytes) -> str | None:
    """Return the ``type`` of a JSON object; ``None`` if the data is no such object, or is no JSON."""
    try:
        return _type_of(data).type
    except (DecodeError, UnicodeError, RecursionError):
        return None


def models_by_type(annotation: Any) -> Mapping[str, Any] | None:
    """Return the models of ``annotation`` by the values of their ``type``; ``None`` if one has none."""
    if not is_structured(annotation):
        return None
    found: dict[str, Any] = {}
    for model in members(annotation):
        hint = unwrap(_type_hint(model))
        values = get_args(hint) if get_origin(hint) is Literal else ()
        if not values or not all(isinstance(value, str) for value in values):
            return None
        for value in values:
            if value in found:
                raise InvalidHandler(
                    f"Expected the models of a message to have different types, but {type_name(model)} has "
                    f"{value!r} like {type_name(found[value])}."
                )
            found[value] = model
    return found


def _type_hint(model: Any) -> Any:
    cls = get_origin(model) or model
    if isinstance(cls, type) and issubclass(cls, BaseModel):
        field = cls.model_fields.get("type")
        return None if field is None or field.alias not in (None, "type") else field.annotation
    try:
        return get_type_hints(cls, include_extras=True).get("type")
    except NameError as exc:
        raise InvalidHandler(
            f"Expected the annotations of {type_name(cls)} to exist when the program runs, but {exc}."
        ) from exc
