"""Signatures: the parameters of a declared function, by the place where their values come from."""

from __future__ import annotations

import inspect
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, is_dataclass
from functools import partial
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Never,
    NoReturn,
    TypeAlias,
    TypeGuard,
    Union,
    get_args,
    get_origin,
    is_typeddict,
)

from fastapi import BackgroundTasks, Request, Response, UploadFile
from fastapi.params import Body, Depends, Param
from fastapi.security import SecurityScopes
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from typing_extensions import TypeAliasType

from hubbub.channels.channel import Channel
from hubbub.channels.current import CURRENT
from hubbub.connection.connection import Connection
from hubbub.exceptions import InvalidHandler
from hubbub.types import Identity

#: The purpose for which an application declares a function.
Purpose: TypeAlias = Literal[
    "on_connect", "on_disconnect", "on_subscribe", "on_unsubscribe", "on_publish", "snapshot", "rpc"
]

#: The classes that a handler may ask for by annotation, beside FastAPI's own.
SPECIAL: Mapping[type, str] = {Channel: "channel", Connection: "connection", Identity: "identity"}

#: FastAPI's own classes, which it fills by annotation.
PROVIDED = (HTTPConnection, Response, BackgroundTasks, SecurityScopes)

#: Without a marker of FastAPI, a parameter of one of these types takes the message of a client.
UNSTRUCTURED = (str, bytes, dict, list, Any, object)

#: Without a marker, FastAPI reads a parameter of one of these types from a body.
BODIES = (BaseModel, Mapping, Sequence, Set, deque, UploadFile)

#: Annotations of functions that never return.
NOTHING = (NoReturn, Never)

#: For these purposes a function decides by an exception, or decides nothing. It returns ``None``.
WITHOUT_RESULT = ("on_subscribe", "on_unsubscribe", "on_disconnect")


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters of a declared function.

    :param function: the function.
    :param purpose: the decorator by which it is declared.
    :param message: the name of the parameter that takes the message of the client; ``None`` without one.
    :param message_type: the annotation of that parameter.
    :param specials: by name of the parameter: the attribute of the call that is its value.
    :param path: by name of the parameter: the annotation of a plain path parameter.
    :param pattern_names: the names of all parameters of the channel's pattern.
    :param injected: all other parameters, which FastAPI fills.
    :param asked: these, and the parameters of all that they depend on.
    :param returns: the annotation of the result; ``inspect.Signature.empty`` without one.
    """

    function: Callable[..., Any]
    purpose: Purpose
    message: str | None
    message_type: Any
    specials: Mapping[str, str]
    path: Mapping[str, Any]
    pattern_names: tuple[str, ...]
    injected: tuple[inspect.Parameter, ...]
    asked: tuple[inspect.Parameter, ...]
    returns: Any

    @property
    def name(self) -> str:
        return name_of(self.function)


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of ``function`` for messages."""
    return getattr(function, "__qualname__", type(function).__name__).rpartition("<locals>.")[2]


def parse_signature(
    function: Callable[..., Any],
    purpose: Purpose,
    path: Collection[str] = (),
    names: Mapping[str, Any] | None = None,
) -> Signature:
    """Divide the parameters of ``function``.

    :param path: the names of the parameters of the channel's pattern.
    :param names: the local names where the function is declared, in which annotations that are strings are
        looked up after the function's own module.
    :raises InvalidHandler: the function cannot be called for this purpose.
    """
    where = f"{purpose} handler {name_of(function)}()"
    _check_callable(function, where)
    parameters, returns = resolve(function, names, where)
    _check_returns(returns, purpose, where)
    specials: dict[str, str] = {}
    plain: dict[str, Any] = {}
    injected: list[inspect.Parameter] = []
    candidates: list[inspect.Parameter] = []
    for parameter in parameters:
        name, annotation = parameter.name, parameter.annotation
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidHandler(
                f"Expected {where} to have named parameters only, but got {parameter}. Name each parameter."
            )
        if (special := special_of(parameter)) is not None:
            specials[name] = special
        elif isinstance(cls := unwrap(annotation), type) and issubclass(cls, Response):
            raise InvalidHandler(
                f"Expected {where} to ask for no Response, because a message has none, but {name!r} is one. "
                "Return the answer, or raise an HTTPException."
            )
        elif marker_of(parameter) is not None or _is_provided(annotation):
            injected.append(parameter)
        elif name in path:
            plain[name] = str if annotation is parameter.empty else annotation
        else:
            candidates.append(parameter)
    _check_specials(specials, purpose, where)
    message = _choose_message(candidates, purpose, where)
    for parameter in candidates:
        if parameter is not message:
            # For FastAPI a query parameter, unless it is a body.
            if is_body(parameter):
                raise InvalidHandler(
                    f"Expected {where} to take one message at most, but its parameter {parameter.name!r} "
                    f"would be a body. Use Depends(…), or Annotated[…, Query()]."
                )
            injected.append(parameter)
    asked = [asked for parameter in injected for asked in check_dependencies(parameter, where, names)]
    return Signature(
        function,
        purpose,
        None if message is None else message.name,
        None if message is None else message.annotation,
        specials,
        plain,
        tuple(path),
        tuple(injected),
        tuple(asked),
        returns,
    )


def resolve(
    function: Callable[..., Any], names: Mapping[str, Any] | None, where: str
) -> tuple[list[inspect.Parameter], Any]:
    """Return the parameters of ``function`` and the annotation of its result, without strings.

    :raises InvalidHandler: an annotation names something that does not exist when the program runs.
    """
    try:
        # The names are those of the place of declaration, which a function from elsewhere does not see.
        signature = inspect.signature(function, locals=names if _is_local(function) else None, eval_str=True)
    except NameError as exc:
        raise InvalidHandler(
            f"Expected the annotations of {where} to exist when the program runs, but {exc}. Import the name "
            "outside of 'if TYPE_CHECKING:', or define it before the handler."
        ) from exc
    except Exception as exc:
        # An annotation that is a string can raise anything.
        raise InvalidHandler(
            f"Expected {where} to have a signature whose annotations can be evaluated, but "
            f"{type(exc).__name__}: {exc}."
        ) from exc
    return list(signature.parameters.values()), signature.return_annotation


def caller_names(depth: int) -> dict[str, Any]:
    """Return the local names of a calling function, for annotations with classes that are local to it.

    :param depth: 1 for the caller of the function that calls this one.
    """
    frame = sys._getframe(depth + 1)
    return {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)


def marker_of(parameter: inspect.Parameter) -> Depends | Param | Body | None:
    """Return FastAPI's marker of ``parameter``, such as ``Depends(…)`` or ``Query()``."""
    for each in (parameter.default, *_metadata(parameter.annotation)):
        if isinstance(each, Depends | Param | Body):
            return each
    return None


def special_of(parameter: inspect.Parameter) -> str | None:
    """Return the attribute of a call that is the value of ``parameter``; ``None`` if FastAPI has it."""
    marker = marker_of(parameter)
    if marker is not None:
        # A dependency of the application may well return an Identity of its own.
        return CURRENT.get(marker.dependency) if isinstance(marker, Depends) else None
    cls = unwrap(parameter.annotation)
    if isinstance(cls, type):
        for special, attribute in SPECIAL.items():
            if issubclass(cls, special):
                return attribute
    return None


def unwrap(annotation: Any) -> Any:
    """Return ``annotation`` without ``Annotated``, names of types and ``| None``."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, TypeAliasType):
            annotation = annotation.__value__
        elif is_union(annotation):
            parts = [part for part in get_args(annotation) if part is not type(None)]
            if len(parts) != 1:
                return annotation
            annotation = parts[0]
        else:
            return annotation


def is_union(annotation: Any) -> bool:
    """Whether ``annotation`` is a union of types."""
    return get_origin(annotation) in (Union, UnionType)


def members(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, also of a nested one; of any other annotation the annotation itself."""
    annotation = unwrap(annotation)
    if is_union(annotation):
        for part in get_args(annotation):
            yield from members(part)
    else:
        yield annotation


def is_structured(annotation: Any) -> bool:
    """Whether ``annotation`` is a model, a dataclass, a ``TypedDict``, or a union of these."""
    return all(_is_model(part) for part in members(annotation))


def is_body(parameter: inspect.Parameter) -> bool:
    """Whether FastAPI would read ``parameter`` from the body of a request."""
    marker = marker_of(parameter)
    if marker is not None:
        return isinstance(marker, Body)
    if _is_provided(parameter.annotation) or parameter.annotation is parameter.empty:
        return False
    return any(_is_model(part) or _is_container(part) for part in members(parameter.annotation))


def _is_container(annotation: Any) -> bool:
    cls = get_origin(annotation) or annotation
    return isinstance(cls, type) and issubclass(cls, BODIES) and not issubclass(cls, str | bytes)


def _is_model(annotation: Any) -> bool:
    cls = get_origin(annotation) or annotation
    return isinstance(cls, type) and (issubclass(cls, BaseModel) or is_dataclass(cls) or is_typeddict(cls))


def _is_provided(annotation: Any) -> TypeGuard[type]:
    cls = unwrap(annotation)
    return isinstance(cls, type) and issubclass(cls, PROVIDED)


def _metadata(annotation: Any) -> tuple[Any, ...]:
    while isinstance(annotation, TypeAliasType):
        annotation = annotation.__value__
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


# Dependencies


def dependency_of(depends: Depends, annotation: Any = None) -> Callable[..., Any] | None:
    """Return the callable of ``Depends(…)``; of ``Depends()`` the class of its parameter."""
    if depends.dependency is not None:
        return depends.dependency
    cls = unwrap(annotation)
    return cls if callable(cls) else None


def check_dependencies(
    parameter: inspect.Parameter, where: str, names: Mapping[str, Any] | None = None
) -> list[inspect.Parameter]:
    """Check a parameter and, if it is a dependency, all that it depends on.

    :return: all these parameters.
    :raises InvalidHandler: a dependency asks for a request or for a body, which a message is not.
    """
    asked = []
    for each, path in walk(parameter, names):
        asked.append(each)
        if (cls := unwrap(each.annotation)) and isinstance(cls, type) and issubclass(cls, Request):
            raise InvalidHandler(
                f"Expected {where} to work on a WebSocket, but {path} asks for a Request. Ask for an "
                "HTTPConnection (from fastapi.requests), which both have."
            )
        if path != parameter.name and marker_of(each) is None and special_of(each):
            name = type_name(each.annotation)
            raise InvalidHandler(
                f"Expected a dependency of {where} to use Current{name}, but {path} asks for {name}. Write "
                f"{each.name}: Current{name} (from hubbub)."
            )
        if is_body(each):
            raise InvalidHandler(
                f"Expected dependencies of {where} to read no body, but {path} is one. Take the message in "
                "the handler itself, or use Annotated[…, Query()]."
            )
    return asked


def walk(
    parameter: inspect.Parameter,
    names: Mapping[str, Any] | None = None,
    path: str = "",
    above: tuple[Callable[..., Any], ...] = (),
) -> Iterator[tuple[inspect.Parameter, str]]:
    """Yield ``parameter``, and the parameters of all that it depends on, each with a path for messages.

    :param above: the dependencies that have led here.
    :raises InvalidHandler: a dependency depends on itself.
    """
    path = f"{path}{parameter.name}"
    yield parameter, path
    marker = marker_of(parameter)
    call = dependency_of(marker, parameter.annotation) if isinstance(marker, Depends) else None
    if call is None:
        return
    if any(call is each for each in above):
        raise InvalidHandler(f"Expected no dependency to depend on itself, but {path} does.")
    try:
        parameters, _ = resolve(call, names, f"the dependency {name_of(call)}()")
    except InvalidHandler:
        # FastAPI resolves it by rules of its own, or says which name is missing.
        return
    for each in parameters:
        yield from walk(each, names, f"{path} → {name_of(call)}.", (*above, call))


def type_name(annotation: Any) -> str:
    """Return the name of a type for messages."""
    cls = unwrap(annotation)
    return cls.__name__ if isinstance(cls, type) else str(cls)


# Internal


def _check_callable(function: Callable[..., Any], where: str) -> None:
    if not callable(function):
        raise InvalidHandler(f"Expected a function, but got {function!r}.")
    if any(
        inspect.isasyncgenfunction(each) or inspect.isgeneratorfunction(each) for each in _called(function)
    ):
        raise InvalidHandler(
            f"Expected {where} to return its result, but it is a generator. Publish each item with "
            "'await hub.publish(…)'; a dependency with 'yield' belongs into Depends(…)."
        )


def _check_returns(returns: Any, purpose: Purpose, where: str) -> None:
    found = [each for each in members(returns) if each not in (inspect.Signature.empty, Any, *NOTHING)]
    if purpose in WITHOUT_RESULT and any(each not in (None, type(None)) for each in found):
        advice = " Raise HTTPException(403) to refuse a client." if purpose == "on_subscribe" else ""
        raise InvalidHandler(
            f"Expected {where} to return None, but it is annotated {type_name(returns)}.{advice}"
        )
    if purpose == "on_connect" and not all(
        isinstance(each, type) and issubclass(each, Identity | None) for each in found if each is not None
    ):
        raise InvalidHandler(
            f"Expected {where} to return an Identity or None, but it is annotated {type_name(returns)}. "
            "Write return Identity(user=…)."
        )


def _check_specials(specials: Mapping[str, str], purpose: Purpose, where: str) -> None:
    if purpose == "rpc" and "channel" in specials.values():
        raise InvalidHandler(
            f"Expected {where} not to ask for a Channel, because an rpc is called for none. Take the name of "
            "the channel in the message."
        )
    if purpose in ("on_connect", "on_disconnect") and "channel" in specials.values():
        raise InvalidHandler(f"Expected {where} not to ask for a Channel, because there is none yet.")
    if purpose == "on_connect" and specials:
        raise InvalidHandler(
            f"Expected {where} to return the Identity of a client, but it asks for one, or for a Connection, "
            "which the client has only afterwards. Use dependencies."
        )


def _choose_message(
    candidates: list[inspect.Parameter], purpose: Purpose, where: str
) -> inspect.Parameter | None:
    """Return the parameter that takes the message.

    It is the one whose annotation is a model; without a model, the one that is a ``str``, ``bytes`` or plain
    JSON. All others are query parameters, as in FastAPI.
    """
    if purpose not in ("on_publish", "rpc"):
        return None
    models = [
        each for each in candidates if each.annotation is not each.empty and is_structured(each.annotation)
    ]
    if len(models) > 1:
        raise InvalidHandler(
            f"Expected {where} to take one message, but {models[0].name!r} and {models[1].name!r} are both "
            f"models. Use one parameter, annotated {type_name(models[0].annotation)} | "
            f"{type_name(models[1].annotation)}."
        )
    if models:
        return _without_default(models[0], where)
    others = [
        each
        for each in candidates
        if each.default is each.empty
        and (get_origin(unwrap(each.annotation)) or unwrap(each.annotation)) in UNSTRUCTURED
    ]
    if len(others) == 1:
        return _without_default(others[0], where)
    if purpose == "rpc" and not others:
        return None
    found = "has none" if not others else f"got {', '.join(repr(each.name) for each in others)}"
    raise InvalidHandler(
        f"Expected {where} to have one parameter for the message, annotated with a model, str or bytes, but "
        f"it {found}. Mark query parameters with Annotated[…, Query()]."
    )


def _without_default(message: inspect.Parameter, where: str) -> inspect.Parameter:
    # An rpc may come without data, which is null.
    if message.default is message.empty or message.default is None:
        return message
    raise InvalidHandler(
        f"Expected {where} to have no default for its message, because it is never called without one, but "
        f"{message.name!r} has one. Give the fields of its model defaults."
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Whether ``function`` is asynchronous; other functions run in the thread pool, as in FastAPI."""
    return any(map(inspect.iscoroutinefunction, _called(function)))


def _called(function: Callable[..., Any]) -> Iterator[Any]:
    """Yield the function that is called, without ``partial`` and objects, and the one that it wraps."""
    while isinstance(function, partial):
        function = function.func
    for each in (function, inspect.unwrap(function)):
        yield each if inspect.isroutine(each) else getattr(each, "__call__", each)  # noqa: B004


def _is_local(function: Callable[..., Any]) -> bool:
    """Whether ``function`` was defined within another one."""
    while isinstance(function, partial):
        function = function.func
    if inspect.ismethod(function):
        function = function.__func__
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return "<locals>" in name


def asks_for(parameters: Iterable[inspect.Parameter], *classes: type) -> bool:
    """Whether one of ``parameters`` is annotated with one of ``classes``."""
    return any(
        isinstance(cls := unwrap(each.annotation), type) and issubclass(cls, classes) for each in parameters
    )
