"""Declarations: channels that an application declares, by pattern, with the functions that guard them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, overload

from fastapi.params import Depends

from hubbub.channels.injection import Operation
from hubbub.channels.messages import MessageTable
from hubbub.channels.pattern import Pattern
from hubbub.channels.results import encoder
from hubbub.channels.signature import Purpose, Signature, caller_names, name_of, parse_signature, unwrap
from hubbub.core.history import History
from hubbub.exceptions import InvalidHandler

F = TypeVar("F", bound=Callable[..., Any])


class Token(Protocol):
    """Checks subscription tokens, as :class:`hubbub.JWT` does."""

    @property
    def required(self) -> bool | None:
        """Whether a client needs a token; ``None`` stands for ``True``."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A function as it was declared.

    :param function: the function.
    :param purpose: the decorator.
    :param names: local names at the declaration, for annotations.
    :param exclude_sender: whether the sender does not get the publication that it causes.
    """

    function: Callable[..., Any]
    purpose: Purpose
    names: Mapping[str, Any]
    exclude_sender: bool = False


@dataclass(slots=True)
class Functions:
    """The functions of a declaration, shared by its copies below other prefixes."""

    declared: list[Declared] = field(default_factory=list)
    #: The on_publish handlers by their messages; for checks alone.
    messages: MessageTable[Signature] | None = None
    is_sealed: bool = False
    #: Called when an on_publish handler has been added.
    on_new_message: list[Callable[[], None]] = field(default_factory=list)

    def of(self, purpose: Purpose) -> list[Declared]:
        """Return the functions with this purpose, in the order of declaration."""
        return [each for each in self.declared if each.purpose == purpose]

    def add(self, declared: Declared, where: str, signature: Signature) -> None:
        """Add a function.

        :param where: the pattern, for messages.
        :raises InvalidHandler: there is one for this purpose, and there may be only one; or its messages
            could not be told from those of another.
        :raises RuntimeError: the hub is running.
        """
        if self.is_sealed:
            raise RuntimeError(
                f"Expected handlers of {where} to be declared before the hub starts, but the hub is running. "
                f"Declare {signature.name}() where the channel is declared."
            )
        is_for_messages = declared.purpose == "on_publish"
        if is_for_messages:
            if self.messages is None:
                self.messages = MessageTable(where)
            self.messages.add(signature, signature)
        elif others := self.of(declared.purpose):
            raise InvalidHandler(
                f"Expected one {declared.purpose} handler of {where}, but got "
                f"{name_of(others[0].function)}() and {signature.name}(). Make one a dependency "
                "of the other."
            )
        self.declared.append(declared)
        if is_for_messages:
            for changed in self.on_new_message:
                changed()


class ChannelDeclaration:
    """The settings and handlers of all channels whose names match a pattern.

    Made by :meth:`hubbub.Hub.channel` and :meth:`hubbub.Channels.channel`.

    ::

        room = hub.channel("room:{room_id}", history=History(size=200), dependencies=[Depends(require_user)])

        @room.on_subscribe
        async def enter(room_id: int, user: CurrentUser) -> None:
            if room_id not in user.rooms:
                raise HTTPException(403, "not your room")

        @room.on_publish
        async def say(message: Say, room_id: int, user: CurrentUser, db: DB) -> Said:
            return Said(user=user.name, text=message.text)

    Handlers get their parameters as FastAPI's endpoints do: ``Depends``, ``Security``, ``Header``,
    ``Cookie``, ``Query``, and the pattern's parameters as path parameters. They may also ask for
    :class:`hubbub.Channel`, :class:`hubbub.Connection`, :class:`hubbub.Identity`, ``WebSocket`` and
    ``BackgroundTasks`` by annotation. Dependencies are closed after each call, before its publication goes
    out. ``def`` functions run in the thread pool.

    :param pattern: a channel name, in which ``{name}`` stands for one or more characters other than ``:``
        and ``/``, and ``{name:path}`` for one or more characters: ``"room:{room_id}"``,
        ``"file:{path:path}"``.
    :param history: the history that each channel keeps, for clients that reconnect; ``None`` keeps none.
    :param presence: whether the connections in each channel are visible in presence, in all processes.
    :param dependencies: run before ``on_subscribe`` and for each message, as those of a router for its
        routes.
    :param client_publish: whether clients may publish text without a handler; ``"binary"`` is for binary
        frames.
    :param client_presence: whether subscribed clients may read the presence.
    :param client_history: whether subscribed clients may read the history.
    :param token: checks the subscription token that a client sends.
    :raises InvalidChannel: ``pattern`` is not a pattern.
    :raises InvalidHandler: a dependency asks for a request or a body.
    :raises TypeError: another parameter has the wrong type.
    :raises ValueError: a parameter can have no effect.
    """

    __slots__ = (
        "client_history",
        "client_presence",
        "client_publish",
        "dependencies",
        "functions",
        "history",
        "parsed",
        "pattern",
        "presence",
        "token",
    )

    def __init__(
        self,
        pattern: str,
        history: History | None = None,
        presence: bool = False,
        *,
        dependencies: Sequence[Depends] = (),
        client_publish: bool | Literal["binary"] = False,
        client_presence: bool = False,
        client_history: bool = False,
        token: Token | None = None,
    ) -> None:
        self.parsed = Pattern(pattern)
        self.pattern = pattern
        self.history = history
        self.presence = presence
        self.dependencies = check_dependency_list(dependencies, repr(pattern))
        self.client_publish: bool | Literal["binary"] = client_publish
        self.client_presence = client_presence
        self.client_history = client_history
        self.token = token
        #: The handlers, as they were declared.
        self.functions = Functions()
        self._check()

    def __repr__(self) -> str:
        return f"<ChannelDeclaration {self.pattern!r}>"

    def matches(self, name: str) -> bool:
        """Whether ``name`` is one of these channels."""
        return self.parsed.matches(name)

    @property
    def requires_token(self) -> bool:
        """Whether clients need a subscription token."""
        return self.token is not None and self.token.required is not False

    # Handlers

    def on_subscribe(self, function: F) -> F:
        """Declare the function that decides whether a client may use a channel.

        It refuses by an exception: ``HTTPException``, :class:`hubbub.Denied`, ``WebSocketException``. It also
        runs before each message over the POST door, and when the application calls
        :meth:`hubbub.Hub.recheck`.

        :raises InvalidHandler: the function cannot be called, or is the second one.
        """
        return self._add(function, "on_subscribe")

    def on_unsubscribe(self, function: F) -> F:
        """Declare a function that is called when a client has left a channel, in any way.

        It runs with dependencies of its own; those of the channel are not run for it.

        :raises InvalidHandler: the function cannot be called, or is the second one.
        """
        return self._add(function, "on_unsubscribe")

    @overload
    def on_publish(self, function: F) -> F: ...
    @overload
    def on_publish(self, *, exclude_sender: bool = False) -> Callable[[F], F]: ...
    def on_publish(self, function: F | None = None, *, exclude_sender: bool = False) -> F | Callable[[F], F]:
        """Declare a function that handles the messages of clients.

        The annotation of its message parameter picks the messages: a model, ``str`` for text frames,
        ``bytes`` for binary ones. There may be several functions, whose models are told apart by a field
        ``type: Literal["…"]``. The result of a function is validated against its annotation, and published;
        ``None`` publishes nothing.

        :param exclude_sender: do not send the publication to the connection that has caused it.
        :raises InvalidHandler: the function cannot be called, or its messages could not be told from those of
            another one.
        """
        if not isinstance(exclude_sender, bool):
            raise TypeError(f"Expected exclude_sender as bool, but got {exclude_sender!r}.")
        names = caller_names(1)

        def declare(function: F) -> F:
            return self._add(function, "on_publish", exclude_sender=exclude_sender, names=names)

        return declare if function is None else declare(function)

    def snapshot(self, function: F) -> F:
        """Declare a function that returns the state to which the publications of a channel are changes.

        A client that subscribes gets the state, then every publication after it. The position of the channel
        is read first, then the function is called: the state may already contain publications that follow,
        and misses none.

        :raises InvalidHandler: the function cannot be called, or is the second one.
        :raises ValueError: the channel has no history.
        """
        if self.history is None:
            raise ValueError(
                f"Expected a channel with history for a snapshot, but {self.pattern!r} has none, so that "
                "publications after the state could be lost. Add history=History()."
            )
        return self._add(function, "snapshot")

    # For hubs

    def with_prefix(self, prefix: str, dependencies: Sequence[Depends]) -> ChannelDeclaration:
        """Return a copy below ``prefix``, whose dependencies run after ``dependencies``.

        It shares the handlers, also those that are declared later.
        """
        # Not by the constructor: a setting could be forgotten here.
        below = copy(self)
        below.pattern = prefix + self.pattern
        below.parsed = Pattern(below.pattern)
        below.dependencies = (*dependencies, *self.dependencies)
        return below

    # Internal

    def _add(
        self,
        function: F,
        purpose: Purpose,
        *,
        exclude_sender: bool = False,
        names: Mapping[str, Any] | None = None,
    ) -> F:
        names = caller_names(2) if names is None else names
        # Now, where the traceback shows the function; the hub parses it again for its own prefixes.
        signature = parse_signature(function, purpose, self.parsed.names, names)
        Operation(signature, self.dependencies, encoder(signature))
        if purpose == "on_publish":
            self._check_publish(signature)
        declared = Declared(function, purpose, names, exclude_sender)
        self.functions.add(declared, repr(self.pattern), signature)
        return function

    def _check_publish(self, signature: Signature) -> None:
        """Check that a handler and ``client_publish`` do not both take the same messages."""
        is_binary = unwrap(signature.message_type) is bytes
        if self.client_publish == ("binary" if is_binary else True):
            raise InvalidHandler(
                f"Expected either client_publish={self.client_publish!r} or an on_publish handler for these "
                f"messages of {self.pattern!r}, but {signature.name}() is declared beside it. Remove one."
            )

    def _check(self) -> None:
        if self.history is not None and not isinstance(self.history, History):
            raise TypeError(
                f"Expected a History for the history of {self.pattern!r}, such as History(size=100, "
                f"ttl=3600), but got {self.history!r}."
            )
        for name in ("presence", "client_presence", "client_history"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(
                    f"Expected True or False for the {name} of {self.pattern!r}, but got {value!r}."
                )
        if self.client_publish not in (True, False, "binary"):
            raise TypeError(
                f"Expected True, False or 'binary' for the client_publish of {self.pattern!r}, but got "
                f"{self.client_publish!r}."
            )
        if self.client_presence and not self.presence:
            raise ValueError(
                f"Expected presence=True beside client_presence=True, but {self.pattern!r} has no presence."
            )
        if self.client_history and self.history is None:
            raise ValueError(
                f"Expected a history beside client_history=True, but {self.pattern!r} has none. Add "
                "history=History()."
            )


def check_dependency_list(dependencies: Any, where: str) -> Sequence[Depends]:
    """Return ``dependencies`` if it is a list of ``Depends(…)``.

    :raises TypeError: it is not.
    """
    if isinstance(dependencies, Depends) or not isinstance(dependencies, Iterable):
        raise TypeError(f"Expected dependencies of {where} as a list, but got {dependencies!r}.")
    checked = tuple(dependencies)
    for each in checked:
        if not isinstance(each, Depends) or each.dependency is None:
            raise TypeError(
                f"Expected each of the dependencies of {where} as Depends(function) or Security(function), "
                f"but got {each!r}."
            )
    return checked
