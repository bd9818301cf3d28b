"""Injection: calls a declared function with its parameters.

A function that needs nothing but the message, path parameters, channel, connection and identity is called
directly. Any other is called by FastAPI: as the endpoint of a WebSocket route of its own, which is dispatched
once for each call. Nothing else that is public runs dependencies; it costs some 50 µs. Each dispatch has its
own ``yield`` scope and its own cache of dependencies, as a request has.

The route's endpoint is a shim, which takes the parameters that FastAPI fills and adds the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

from fastapi import BackgroundTasks, Depends, WebSocket
from fastapi.exceptions import FastAPIError
from fastapi.params import Depends as DependsMarker
from fastapi.params import Path
from fastapi.routing import APIWebSocketRoute
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocketState

from hubbub.channels.current import CALL, Call, Overrides, present, receive_nothing
from hubbub.channels.signature import Signature, asks_for, check_dependencies, is_async, marker_of, special_of
from hubbub.exceptions import InvalidHandler

T = TypeVar("T")

# The hidden parameter through which FastAPI gives the tasks that dependencies have added.
_BACKGROUND = "hubbub_background"

_overrides = Overrides()


class InvalidParameters(ValueError):
    """A path, query, header or cookie parameter of a client does not validate.

    :param errors: as pydantic describes them, with the place of the parameter first in ``loc``.
    """

    def __init__(self, errors: Sequence[Any]) -> None:
        super().__init__("Expected parameters that validate.")
        self.errors = errors


class SwallowedError(RuntimeError):
    """A dependency with ``yield`` has caught the exception of a handler and has not raised it again."""


class Operation(Generic[T]):
    """A declared function, ready to be called.

    :param signature: of the function.
    :param dependencies: run before the function, without parameters for their values.
    :param finish: turns the result into the value of the call, while dependencies are still open.
    :raises InvalidHandler: FastAPI cannot call the function.
    """

    def __init__(
        self,
        signature: Signature,
        dependencies: Sequence[DependsMarker] = (),
        finish: Callable[[Any], T] = lambda result: result,
    ) -> None:
        self.signature = signature
        self.dependencies = dependencies
        self._function = signature.function
        self._is_async = is_async(signature.function)
        self._finish = finish
        self._path = {name: _adapter(signature, name, hint) for name, hint in signature.path.items()}
        where = f"{signature.purpose} handler {signature.name}()"
        asked = [*signature.asked]
        for depends in dependencies:
            asked += check_dependencies(parameter_of(depends), where)
        _check_asked(signature, asked, where)
        #: Whether the function, or anything that it depends on, needs an open socket.
        self.needs_connection = (
            "connection" in signature.specials.values()
            or asks_for(signature.injected, WebSocket)
            or any(special_of(each) == "connection" for each in asked)
        )
        #: The parameters of the function that FastAPI fills, and of all that it depends on.
        self.asked: Sequence[inspect.Parameter] = asked
        self._route: APIWebSocketRoute | None = None
        if dependencies or signature.injected:
            self._route = self._make_route()

    def __repr__(self) -> str:
        return f"<Operation {self.signature.purpose} {self.signature.name}>"

    async def __call__(self, call: Call) -> T:
        """Call the function, and close its dependencies.

        The exceptions of the function and of its dependencies are raised unchanged.

        :raises InvalidParameters: a parameter does not validate.
        :raises SwallowedError: a dependency hides that the function has failed.
        """
        if self._route is None:
            arguments = self._arguments(call)
            if self._is_async:
                return self._finish(await self._function(**arguments))
            return self._finish(await run_in_threadpool(self._function, **arguments))
        client = call.client
        scope = client.scope.copy()
        scope["path_params"] = {} if call.channel is None else dict(call.channel.params)
        scope[CALL] = call
        context = copy_context()
        context.run(present.set, call)
        # In a context of its own: a context variable that a dependency sets ends with the call.
        await InContext(self._route.app(scope, receive_nothing, client.send), context)
        if not call.is_finished:
            raise SwallowedError(
                f"Expected dependencies to raise the exception of {self.signature.name}() again, but one of "
                "them has caught it. End its 'except' with 'raise'."
            )
        result: T = call.result
        return result

    # Internal

    def _arguments(self, call: Call) -> dict[str, Any]:
        """Return the arguments that FastAPI does not fill."""
        signature = self.signature
        arguments: dict[str, Any] = {}
        if signature.message is not None:
            arguments[signature.message] = call.message
        if self._path:
            arguments.update(self._path_values(call))
        for name, attribute in signature.specials.items():
            arguments[name] = getattr(call, attribute)
        return arguments

    def _path_values(self, call: Call) -> Any:
        assert call.channel is not None
        key = (self, call.channel.name)
        values = call.client.paths.get(key)
        if values is None:
            values, errors = {}, []
            for name, adapter in self._path.items():
                try:
                    values[name] = adapter.validate_python(call.channel.params[name])
                except ValidationError as exc:
                    errors += [{**error, "loc": ("path", name, *error["loc"])} for error in exc.errors()]
            if errors:
                raise InvalidParameters(errors)
            call.client.paths[key] = values
        return values

    def _make_route(self) -> APIWebSocketRoute:
        signature = self.signature
        function, is_async_function = self._function, self._is_async
        finish, arguments_of = self._finish, self._arguments

        async def shim(**injected: Any) -> None:
            call = present.get()
            call.background = injected.pop(_BACKGROUND)
            if background_name is not None:
                injected[background_name] = call.background
            arguments = {**injected, **arguments_of(call)}
            if is_async_function:
                result = await function(**arguments)
            else:
                result = await run_in_threadpool(function, **arguments)
            call.result = finish(result)
            call.is_finished = True

        parameters = [each.replace(kind=each.KEYWORD_ONLY) for each in signature.injected]
        # FastAPI has one place for it: the parameter of the function gives way to the hidden one.
        background_name = next((each.name for each in parameters if _is_background(each)), None)
        parameters = [each for each in parameters if each.name != background_name]
        # Always there: an override may ask for it where the dependency that it replaces does not.
        parameters.append(
            inspect.Parameter(_BACKGROUND, inspect.Parameter.KEYWORD_ONLY, annotation=BackgroundTasks)
        )
        shim.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        shim.__name__ = signature.name
        # FastAPI takes from the path the names of path parameters alone.
        path = "/" + "/".join(f"{{{name}}}" for name in signature.pattern_names)
        try:
            return APIWebSocketRoute(
                path,
                shim,
                dependencies=[Depends(_open), *self.dependencies],
                dependency_overrides_provider=_overrides,
            )
        except (FastAPIError, PydanticUserError, AssertionError, TypeError, ValueError, NameError) as exc:
            raise InvalidHandler(
                f"Expected {signature.purpose} handler {signature.name}() to be a function that FastAPI can "
                f"call, but: {exc}"
            ) from exc


class InContext(Generic[T]):
    """An awaitable that runs a coroutine in a context of its own, inside of the present task.

    A task for each call would do it as well, and would cost some 100 µs.

    :param coroutine: not started.
    :param context: where it runs.
    """

    __slots__ = ("_context", "_coroutine")

    def __init__(self, coroutine: Awaitable[T], context: Context) -> None:
        self._coroutine = coroutine
        self._context = context

    def __await__(self) -> Generator[Any, Any, T]:
        # ``yield from``, with each step in the context.
        run, steps = self._context.run, self._coroutine.__await__()
        try:
            awaited = run(next, steps)
            while True:
                try:
                    value = yield awaited
                except BaseException as exc:
                    awaited = run(steps.throw, exc)
                else:
                    awaited = run(steps.send, value)
        except StopIteration as stop:
            result: T = stop.value
            return result


async def _open(websocket: WebSocket) -> None:
    """Make the socket of the call an open one: the dispatch has a new object for it."""
    if present.get().connection is not None:
        websocket.client_state = websocket.application_state = WebSocketState.CONNECTED


def parameter_of(depends: DependsMarker) -> inspect.Parameter:
    """Return a parameter for an entry of ``dependencies``."""
    return inspect.Parameter("dependencies", inspect.Parameter.KEYWORD_ONLY, default=depends)


def _check_asked(signature: Signature, asked: Sequence[inspect.Parameter], where: str) -> None:
    """Check that the function can have all that it and its dependencies ask for.

    :raises InvalidHandler: they ask for something that does not exist when it is called.
    """
    for each in asked:
        marker, special = marker_of(each), special_of(each)
        if isinstance(marker, Path) and (name := marker.alias or each.name) not in signature.pattern_names:
            raise InvalidHandler(
                f"Expected the path parameters of {where} to be in the pattern, but {name!r} is not. Name it "
                f"{{{name}}} in the pattern, or use Query()."
            )
        if special == "channel" and signature.purpose in ("rpc", "on_connect", "on_disconnect"):
            raise InvalidHandler(
                f"Expected the dependencies of {where} not to use CurrentChannel, because it is called for "
                "no channel."
            )
        if special is not None and signature.purpose == "on_connect":
            raise InvalidHandler(
                f"Expected the dependencies of {where} not to use Current{special.capitalize()}, because the "
                "client has none before. Ask for an HTTPConnection."
            )


def _is_background(parameter: inspect.Parameter) -> bool:
    return asks_for([parameter], BackgroundTasks)


def _adapter(signature: Signature, name: str, hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint)
    except (PydanticUserError, TypeError, NameError) as exc:
        raise InvalidHandler(
            f"Expected the path parameter {name!r} of {signature.purpose} handler {signature.name}() to have "
            f"a type that pydantic can validate, but: {exc}"
        ) from exc
