"""Operations: the handlers of a declaration, ready to be called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from fastapi.params import Depends

from hubbub.channels.declaration import ChannelDeclaration, Declared
from hubbub.channels.injection import Operation
from hubbub.channels.messages import MessageTable
from hubbub.channels.results import Encoded, InvalidResult, encoder, json_encoder
from hubbub.channels.signature import Purpose, Signature, parse_signature


@dataclass(frozen=True, slots=True, eq=False)
class PublishHandler:
    """An on_publish handler.

    :param operation: calls it, and returns the publication.
    :param exclude_sender: whether the sender does not get the publication.
    """

    operation: Operation[Encoded | None]
    exclude_sender: bool


class ChannelOperations:
    """The operations of one declaration.

    :param declaration: with all its handlers.
    :param dependencies: those of the hub, which run before those of the declaration.
    :raises InvalidHandler: a handler cannot be called.
    """

    def __init__(self, declaration: ChannelDeclaration, dependencies: Sequence[Depends] = ()) -> None:
        self.declaration = declaration
        guards = (*dependencies, *declaration.dependencies)
        #: Runs the dependencies and ``on_subscribe``; ``None`` if there are neither.
        self.subscribe = self._guard("on_subscribe", guards)
        #: Runs the dependencies for a message that no handler takes; ``None`` without dependencies.
        self.pass_on = _of_dependencies(declaration, guards) if guards else None
        #: Runs ``on_unsubscribe``, if there is one.
        self.unsubscribe = self._guard("on_unsubscribe", ())
        #: Runs ``snapshot``, if there is one.
        self.snapshot: Operation[bytes] | None = None
        for declared in declaration.functions.of("snapshot"):
            signature = self._parse(declared)
            self.snapshot = Operation(signature, (), json_encoder(signature))
        #: The ``on_publish`` handlers.
        self.messages: MessageTable[PublishHandler] = MessageTable(repr(declaration.pattern))
        for handler in publish_handlers(declaration, dependencies):
            self.messages.add(handler, handler.operation.signature)

    # Internal

    def _guard(self, purpose: Purpose, dependencies: Sequence[Depends]) -> Operation[None] | None:
        for declared in self.declaration.functions.of(purpose):
            signature = self._parse(declared)
            return Operation(signature, dependencies, partial(check_nothing, signature))
        return _of_dependencies(self.declaration, dependencies) if dependencies else None

    def _parse(self, declared: Declared) -> Signature:
        return _parse(self.declaration, declared)


def publish_handlers(
    declaration: ChannelDeclaration, dependencies: Sequence[Depends] = ()
) -> list[PublishHandler]:
    """Return the on_publish handlers of ``declaration``.

    :param dependencies: those of the hub, which run before those of the declaration.
    :raises InvalidHandler: a handler cannot be called.
    """
    handlers = []
    for declared in declaration.functions.of("on_publish"):
        signature = _parse(declaration, declared)
        operation = Operation(signature, (*dependencies, *declaration.dependencies), encoder(signature))
        handlers.append(PublishHandler(operation, declared.exclude_sender))
    return handlers


def _parse(declaration: ChannelDeclaration, declared: Declared) -> Signature:
    return parse_signature(declared.function, declared.purpose, declaration.parsed.names, declared.names)


def check_nothing(signature: Signature, result: Any) -> None:
    """Check that a handler that cannot return anything has returned ``None``.

    :raises InvalidResult: it has not. ``return False`` in ``on_subscribe`` would refuse no client.
    """
    if result is not None:
        _refuse_result(signature, result)


def _refuse_result(signature: Signature, result: Any) -> NoReturn:
    advice = " Raise HTTPException(403) to refuse a client." if signature.purpose == "on_subscribe" else ""
    raise InvalidResult(
        f"Expected {signature.purpose} handler {signature.name}() to return None, but got "
        f"{type(result).__name__}.{advice}"
    )


def _of_dependencies(declaration: ChannelDeclaration, dependencies: Sequence[Depends]) -> Operation[None]:
    """Return an operation that runs dependencies only."""

    async def run_dependencies() -> None:
        return None

    signature = parse_signature(run_dependencies, "on_subscribe", declaration.parsed.names)
    return Operation(signature, dependencies, lambda result: None)
