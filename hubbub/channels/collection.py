"""Collections: channels and rpc methods that are declared apart from the hub, as routes are in a router."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from fastapi.params import Depends

from hubbub.channels.declaration import ChannelDeclaration, Declared, Token, check_dependency_list
from hubbub.channels.injection import Operation
from hubbub.channels.results import json_encoder
from hubbub.channels.signature import caller_names, parse_signature
from hubbub.core.history import History
from hubbub.exceptions import InvalidHandler

F = TypeVar("F", bound=Callable[..., Any])

#: Characters of the name of an rpc method.
MAX_METHOD = 255


class Method:
    """An rpc method.

    :param name: by which clients call it.
    :param declared: its function.
    :param dependencies: run before the function.
    """

    __slots__ = ("declared", "dependencies", "name")

    def __init__(self, name: str, declared: Declared, dependencies: Sequence[Depends] = ()) -> None:
        self.name = name
        self.declared = declared
        self.dependencies = dependencies

    def operation(self, dependencies: Sequence[Depends] = ()) -> Operation[bytes]:
        """Return the operation that calls the method, after ``dependencies`` and its own."""
        signature = parse_signature(self.declared.function, "rpc", (), self.declared.names)
        return Operation(signature, (*dependencies, *self.dependencies), json_encoder(signature))


class Channels:
    """Channels and rpc methods in a module of their own, collected as FastAPI's routers are.

    ::

        # rooms.py
        channels = Channels(dependencies=[Depends(require_user)])
        room = channels.channel("room:{room_id}", history=History(size=200))

        @room.on_publish
        async def say(message: Say, room_id: int) -> Said: ...

        # main.py
        hub.include(rooms.channels, prefix="shop:")

    :param dependencies: run before those of each channel and method.
    :raises TypeError: ``dependencies`` is not a list of ``Depends(…)``.
    """

    def __init__(self, *, dependencies: Sequence[Depends] = ()) -> None:
        self.dependencies = check_dependency_list(dependencies, "Channels")
        #: The channels, in the order of declaration.
        self.declarations: list[ChannelDeclaration] = []
        #: The rpc methods by name.
        self.methods: dict[str, Method] = {}
        self._included = False

    def channel(
        self,
        pattern: str,
        *,
        history: History | None = None,
        presence: bool = False,
        dependencies: Sequence[Depends] = (),
        client_publish: bool | Literal["binary"] = False,
        client_presence: bool = False,
        client_history: bool = False,
        token: Token | None = None,
    ) -> ChannelDeclaration:
        """Declare channels; see :meth:`hubbub.Hub.channel`.

        :raises RuntimeError: the collection has been included in a hub.
        """
        self._check_open(pattern)
        declaration = ChannelDeclaration(
            pattern,
            history,
            presence,
            dependencies=dependencies,
            client_publish=client_publish,
            client_presence=client_presence,
            client_history=client_history,
            token=token,
        )
        self.declarations.append(declaration)
        return declaration

    def rpc(self, name: str, *, dependencies: Sequence[Depends] = ()) -> Callable[[F], F]:
        """Declare a function that clients call by name; see :meth:`hubbub.Hub.rpc`.

        :raises RuntimeError: the collection has been included in a hub.
        """
        self._check_open(name)
        return declare_method(self.methods, name, dependencies)

    def _check_open(self, name: str) -> None:
        if self._included:
            raise RuntimeError(
                f"Expected {name!r} to be declared before hub.include(…), but the collection is included "
                "already. Call hub.include(…) after all declarations."
            )

    def close(self) -> None:
        """Accept no more channels and methods: a hub has included the collection."""
        self._included = True


def declare_method(
    methods: dict[str, Method], name: str, dependencies: Sequence[Depends]
) -> Callable[[F], F]:
    """Return the decorator that adds an rpc method to ``methods``.

    :raises InvalidHandler: the name is taken, or the function cannot be called.
    :raises TypeError: the name is not a ``str``, or ``dependencies`` is not a list of ``Depends(…)``.
    :raises ValueError: the name is empty or too long.
    """
    if not isinstance(name, str):
        raise TypeError(f'Expected a name for the method, as @hub.rpc("room.rename"), but got {name!r}.')
    if not 0 < len(name) <= MAX_METHOD:
        raise ValueError(f"Expected a method's name of 1 to {MAX_METHOD} characters, but got {len(name)}.")
    checked = check_dependency_list(dependencies, f"the method {name!r}")
    names = caller_names(2)

    def declare(function: F) -> F:
        method = Method(name, Declared(function, "rpc", names), checked)
        method.operation()
        add_method(methods, method)
        return function

    return declare


def add_method(methods: dict[str, Method], method: Method) -> None:
    """Add ``method`` to ``methods``.

    :raises InvalidHandler: its name is taken.
    """
    if method.name in methods:
        raise InvalidHandler(
            f"Expected each rpc method to have a name of its own, but {method.name!r} is declared twice."
        )
    methods[method.name] = method
