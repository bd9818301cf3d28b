"""Hub: the object through which an application publishes and accepts connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from weakref import WeakSet

from fastapi import APIRouter
from fastapi.params import Depends
from starlette.types import Lifespan, Receive, Send
from starlette.websockets import WebSocket

from hubbub.channels.access import Access
from hubbub.channels.collection import Channels, Method, add_method, declare_method
from hubbub.channels.declaration import ChannelDeclaration, Declared, Token, check_dependency_list
from hubbub.channels.registry import Registry
from hubbub.channels.results import Encoded
from hubbub.channels.signature import Purpose, caller_names, name_of, parse_signature
from hubbub.codes import CloseCode, check_code, clip_reason
from hubbub.connection.connection import Connection, connection_id
from hubbub.connection.door import DoorConnection
from hubbub.connection.limits import Limits
from hubbub.connection.stream import Stream
from hubbub.core.history import History
from hubbub.core.publication import (
    START,
    Position,
    Publication,
    check_channel,
    check_key,
    check_position,
    encode,
    publication_ids,
)
from hubbub.engines import doctor_command, engine_for
from hubbub.exceptions import EngineUnavailable, HubbubError, InvalidChannel, InvalidHandler, Unrecoverable
from hubbub.metrics.measured import Measured
from hubbub.metrics.router import MetricsRouter
from hubbub.metrics.telemetry import feed_telemetry
from hubbub.node.clock import Clocks
from hubbub.node.control import Disconnect, Recheck
from hubbub.node.lifecycle import Lifecycle
from hubbub.node.node import Node
from hubbub.node.slots import Capacity, Slot
from hubbub.routes.endpoints import Door, http_endpoint, websocket_endpoint
from hubbub.routes.events import EventDoor
from hubbub.routes.preflight import PreflightDoor
from hubbub.routes.publish import PublishDoor
from hubbub.routes.publish_docs import PublishDocs
from hubbub.routes.serving import PATH, Serving
from hubbub.routes.websocket import WebSocketDoor
from hubbub.security.admission import Admission
from hubbub.security.hosts import parse_hosts
from hubbub.security.logs import protect_logs
from hubbub.security.origins import parse_origins
from hubbub.servers.adoption import adopt_server, adopt_server_of
from hubbub.servers.stopping import Stopping
from hubbub.servers.workers import the_only_worker
from hubbub.threads import refuse_event_loop
from hubbub.types import Health, Presence, SlowConsumer, Stats, User, check_count, check_seconds, user_id

F = TypeVar("F", bound=Callable[..., Any])

#: Every hub of this process. ``hubbub run`` looks here for hubs that cannot run in several workers.
hubs: WeakSet[Hub] = WeakSet()


class HubRouter(APIRouter):
    """The router of a hub, which knows whether it is included in an app or in another router."""

    def __init__(self, lifespan: Lifespan[Any]) -> None:
        super().__init__(lifespan=lifespan)
        #: Whether its lifespan has been read, as ``include_router`` does.
        self.is_included = False

    def add_doors(self, serving: Serving) -> None:
        """Add the routes through which clients reach declared channels."""
        websocket = WebSocketDoor(serving)
        self.add_api_websocket_route(PATH, websocket_endpoint(websocket))
        doors: dict[str, Door] = {
            "GET": EventDoor(serving),
            "POST": PublishDoor(serving),
            "OPTIONS": PreflightDoor(serving),
        }
        # The endpoints do not keep them.
        self._doors = (websocket, *doors.values())
        for method, door in doors.items():
            self.add_api_route(
                PATH, http_endpoint(door), methods=[method], response_model=None, include_in_schema=False
            )

    @property
    def lifespan_context(self) -> Lifespan[Any]:
        self.is_included = True
        return self._lifespan_context

    @lifespan_context.setter
    def lifespan_context(self, lifespan: Lifespan[Any]) -> None:
        self._lifespan_context = lifespan


class Hub:
    """Real-time channels for an application.

    ::

        from fastapi import FastAPI, WebSocket
        from hubbub import Hub

        hub = Hub()
        app = FastAPI()
        app.include_router(hub.router)  # starts and stops the hub with the app

        @app.websocket("/chat")
        async def chat(websocket: WebSocket) -> None:
            async with hub.connection(websocket) as client:
                await client.subscribe("chat")
                async for text in client.iter_text():
                    await hub.publish("chat", text)

    Outside of an app, ``async with hub:`` starts and stops it.

    :param url: the engine. ``memory://`` works in one process, ``sqlite:///hub.db`` across the workers of one
        machine, ``redis://`` and ``postgresql://`` across machines.
    :param namespace: separates the channels of several apps that share one engine.
    :param allow_origins: web pages of other hosts that may connect, such as ``"https://example.com"``;
        ``"*"`` allows every page. Pages of the host that they connect to are always allowed, and so are
        clients that are not browsers.
    :param hosts: host names that clients may connect to, such as ``"example.com"``, addresses, and networks
        such as ``"10.0.0.0/8"``, without ports; against DNS rebinding. A connection to any other host gets
        403. ``None`` checks nothing.
    :param max_message_size: bytes of one message from a client; a longer one closes its connection with 1009.
    :param max_message_rate: messages a second of one connection that reach a handler of a declared channel or
        an rpc method; as many at once are free. A message beyond it is answered with error 111 and is not
        handled. ``None``: no limit. Connections of :meth:`connection` are not limited.
    :param max_connections: connections of this process; beyond it, clients get 503. ``None``: no limit.
    :param max_user_connections: connections of one user in this process; beyond it, clients get 429.
        Connections without a user are not counted. ``None``: no limit.
    :param outbox_limit: bytes that may wait for one slow client. Each message counts its payload and 256
        bytes.
    :param slow_consumer: the policy for a client whose outbox is full: ``"disconnect"`` closes its connection
        with 3008, ``"drop_oldest"`` drops the oldest waiting messages, ``"latest"`` keeps only the newest
        message of each channel.
    :param send_timeout: seconds after which a client that takes nothing is disconnected as slow.
    :param close_timeout: seconds that a client has to take waiting messages when its connection is closed.
    :param presence_ttl: seconds after which the connections of a crashed process are removed from presence.
        Engine outages shorter than this do not change presence.
    :param dependencies: run before those of each channel and rpc method, as those of an app for its routes.
    :raises InvalidURL: no engine has the URL's scheme.
    :raises MissingExtra: the engine needs a package that is not installed.
    :raises TypeError: another parameter has the wrong type.
    :raises ValueError: another parameter is out of range.
    """

    def __init__(
        self,
        url: str = "memory://",
        *,
        namespace: str = "hubbub",
        allow_origins: Iterable[str] = (),
        hosts: Iterable[str] | None = None,
        max_message_size: int = 1_048_576,
        max_message_rate: int | None = 100,
        max_connections: int | None = 50_000,
        max_user_connections: int | None = 100,
        outbox_limit: int = 1_048_576,
        slow_consumer: SlowConsumer = "disconnect",
        send_timeout: float = 30.0,
        close_timeout: float = 5.0,
        presence_ttl: float = 30.0,
        dependencies: Sequence[Depends] = (),
    ) -> None:
        check_seconds("presence_ttl", presence_ttl)
        self._limits = Limits(
            max_message_size=max_message_size,
            outbox_limit=outbox_limit,
            slow_consumer=slow_consumer,
            send_timeout=send_timeout,
            close_timeout=close_timeout,
            max_message_rate=max_message_rate,
        )
        self._capacity = Capacity(max_connections, max_user_connections)
        self._admission = Admission(parse_origins(allow_origins), parse_hosts(hosts))
        #: Carries publications between the processes that share the URL.
        self.engine = engine_for(url, namespace)
        #: ``app.include_router(hub.router)`` starts and stops the hub with the app, and adds the doors.
        self.router = HubRouter(self._lifespan)

        self._presence_ttl = presence_ttl
        self._dependencies = check_dependency_list(dependencies, "the hub")
        # Replaced by hubbub.testing.freeze().
        self._clocks = Clocks()
        self._channels = Registry()
        self._methods: dict[str, Method] = {}
        self._on_connect: Declared | None = None
        self._on_disconnect: Declared | None = None
        # While the hub runs: the handlers, ready to be called.
        self._access: Access | None = None
        self._ids = publication_ids()
        self._lifecycle = Lifecycle(self._start, self._stop)
        self._measured = Measured(self.engine.namespace, self._lifecycle)
        self._metrics: MetricsRouter | None = None
        # Undone when the node has stopped.
        self._undo = AsyncExitStack()
        #: Ends streams when the server begins to stop; see :class:`~hubbub.servers.stopping.Stopping`.
        self.stopping = Stopping()
        # Whether the server has been found, and adopted if it can be.
        self._knows_server = False
        serving = Serving(
            self._serve, self._open_door, self._open_stream, self.position, self._admission, self._limits
        )
        self.router.add_doors(serving)
        #: Keeps the OpenAPI document of the app up to date with the declared channels.
        self._publish_docs = PublishDocs(self.router)
        hubs.add(self)

    def __repr__(self) -> str:
        return f"<Hub {type(self.engine).__name__} {self._lifecycle.state}>"

    # Lifecycle

    async def __aenter__(self) -> Self:
        """Start the hub on this event loop. A hub that is entered several times stops with the last exit.

        :raises EngineUnavailable: the engine cannot be reached.
        :raises HubNotRunning: the hub runs on another event loop.
        :raises InvalidURL: the engine is ``memory://``, and this process is one of several workers.
        """
        if not self._knows_server:
            # Here, because this is the task of the server's lifespan; the hub itself may start in any task.
            self._knows_server = adopt_server(self.stopping)
        try:
            await self._lifecycle.__aenter__()
        except HubbubError as exc:
            # The message is enough; a traceback through Hubbub would hide it.
            raise exc.with_traceback(None) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._lifecycle.__aexit__(kind, exc, traceback)

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        async with self:
            self._lifecycle.app_started()
            feed_telemetry(app, self._measured)
            yield

    async def _start(self) -> Node:
        protect_logs()
        async with AsyncExitStack() as undo:
            self._channels.seal()
            undo.callback(self._channels.unseal)
            access = self._make_access()
            if not (self.engine.across_processes or self.engine.is_alone):
                await undo.enter_async_context(the_only_worker())
            node = Node(
                self.engine,
                self._channels.find,
                self._presence_ttl,
                self._channels.check_history,
                capacity=self._capacity,
                clock=self._clocks.clock,
                wall_clock=self._clocks.wall_clock,
            )
            try:
                await node.start(has_presence=any(declared.presence for declared in self._channels))
            except EngineUnavailable as exc:
                raise EngineUnavailable(
                    f"{exc} To find out more, run: {doctor_command(self.engine.url, self.engine.namespace)}"
                ) from None
            self._access = access
            self._undo = undo.pop_all()
        return node

    def _make_access(self) -> Access:
        return Access(
            self._channels,
            self._methods,
            dependencies=self._dependencies,
            on_connect=self._on_connect,
            on_disconnect=self._on_disconnect,
            publish=self._publish_result,
            timer=self._measured.handler_seconds,
        )

    async def _stop(self, node: Node) -> None:
        self.stopping.begin()
        self.stopping = Stopping()
        self._knows_server = False
        self._undo.callback(self._forget_access)
        async with self._undo:
            # Clients are asked to reconnect; handlers may publish until they have returned.
            try:
                await node.stop(CloseCode.SERVICE_RESTART, "restart", self._limits.close_timeout)
            finally:
                self._measured.stopped(node)

    def _forget_access(self) -> None:
        self._access = None

    async def _running(self) -> Node:
        """Return the running node. If the app has not started it yet, start it.

        :raises HubNotRunning: the hub has stopped, or has not started and is not included in an app.
        """
        if self._lifecycle.node is None and self.router.is_included:
            try:
                await self._lifecycle.start_early()
            except HubbubError as exc:
                raise exc.with_traceback(None) from None
        return self._lifecycle.running()

    # Doors

    async def _serve(self) -> tuple[Node, Access]:
        """Return the node and the handlers of the running hub; start it, if the app has not done so yet."""
        node = await self._running()
        assert self._access is not None
        return node, self._access

    def _open_door(
        self, websocket: WebSocket, user: str | None, subprotocol: str | None, slot: Slot
    ) -> DoorConnection:
        node = self._lifecycle.running()
        self._find_server(websocket)
        return DoorConnection(
            node, websocket, self._admission, self._limits, user=user, subprotocol=subprotocol, slot=slot
        )

    def _open_stream(
        self, receive: Receive, send: Send, user: str | None, headers: Mapping[str, str]
    ) -> Stream:
        node = self._lifecycle.running()
        return Stream(node, receive, send, self._limits, self.stopping, user=user, headers=headers)

    async def _publish_result(self, channel: str, result: Encoded, exclude: str | None) -> Position:
        node = self._lifecycle.running()
        publication = Publication(channel, result.data, result.kind, exclude, id=next(self._ids))
        return await node.publish(publication)

    # Connections

    def connection(
        self,
        websocket: WebSocket,
        *,
        user: User | None = None,
        subprotocol: str | None = None,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
        slow_consumer: SlowConsumer | None = None,
    ) -> Connection:
        """Return a connection for a client's socket, to be used as ``async with hub.connection(websocket)``.

        :param websocket: as FastAPI passes it to the endpoint. It is accepted when the block is entered,
            unless the application has accepted it.
        :param user: the user, if the application knows it. An ``int`` or a ``UUID`` becomes its ``str``.
        :param subprotocol: the one to accept of ``websocket.scope["subprotocols"]``.
        :param headers: sent with the acceptance.
        :param slow_consumer: a policy for this client, in place of the hub's.
        :raises HubNotRunning: the hub has not started, or has stopped.
        :raises TypeError: ``user`` has another type.
        :raises ValueError: ``slow_consumer`` is not a policy.
        """
        node = self._lifecycle.running()
        self._find_server(websocket)
        limits = self._limits
        if slow_consumer is not None:
            limits = replace(limits, slow_consumer=slow_consumer)
        return Connection(
            node,
            websocket,
            self._admission,
            limits,
            user=user,
            subprotocol=subprotocol,
            headers=headers,
        )

    def _find_server(self, websocket: WebSocket) -> None:
        if not self._knows_server:
            self._knows_server = True
            adopt_server_of(websocket, self.stopping)

    def on_connect(self, function: F) -> F:
        """Declare the function that returns the :class:`hubbub.Identity` of a client.

        It is called once for each client of a door, before any other handler, with its own dependencies. It
        refuses a client by an exception; ``None`` is a client without a user. :class:`hubbub.JWT` is such a
        function: ``hub.on_connect(JWT(...))``.

        :raises InvalidHandler: the function cannot be called, or is the second one.
        :raises RuntimeError: the hub is running.
        """
        self._on_connect = self._declare(function, "on_connect", self._on_connect)
        return function

    def on_disconnect(self, function: F) -> F:
        """Declare a function that is called when a connection through a door has ended.

        :raises InvalidHandler: the function cannot be called, or is the second one.
        :raises RuntimeError: the hub is running.
        """
        self._on_disconnect = self._declare(function, "on_disconnect", self._on_disconnect)
        return function

    def rpc(self, name: str, *, dependencies: Sequence[Depends] = ()) -> Callable[[F], F]:
        """Declare a function that clients call by ``name``, and that replies to the caller alone.

        ::

            @hub.rpc("room.rename")
            async def rename(message: Rename, user: CurrentUser) -> Renamed:
                return Renamed(name=message.name)

        Its message is validated like that of an ``on_publish`` handler; without a message parameter it takes
        none. It is guarded by the dependencies of the hub and its own.

        :param name: 1 to 255 characters.
        :param dependencies: run before the function.
        :raises InvalidHandler: the name is taken, or the function cannot be called.
        :raises RuntimeError: the hub is running.
        """
        self._check_stopped(f"the method {name!r}")
        return declare_method(self._methods, name, dependencies)

    def _declare(self, function: Any, purpose: Purpose, present: Declared | None) -> Declared:
        self._check_stopped(f"{purpose} handler {name_of(function)}()")
        if present is not None:
            raise InvalidHandler(
                f"Expected one {purpose} handler, but got {name_of(present.function)}() and "
                f"{name_of(function)}(). Make one a dependency of the other."
            )
        names = caller_names(2)
        parse_signature(function, purpose, (), names)
        return Declared(function, purpose, names)

    def _check_stopped(self, subject: str) -> None:
        if self._access is not None:
            raise RuntimeError(
                f"Expected {subject} to be declared before the hub starts, but the hub is running. "
                "Declare it where the hub is made."
            )

    # Channels

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
        """Declare channels, before the hub starts.

        Clients may subscribe to a declared channel through a door, if its dependencies and its
        ``on_subscribe`` handler let them.

        :param pattern: a channel name, in which ``{name}`` stands for one or more characters other than ``:``
            and ``/``, and ``{name:path}`` for one or more characters: ``"room:{room_id}"``,
            ``"file:{path:path}"``. Of patterns that match a name, the most specific one counts:
            ``"room:lobby"`` before ``"room:{room_id}"``, and that before ``"{all:path}"``.
        :param history: the history that each channel keeps, for clients that reconnect; ``None`` keeps none.
        :param presence: whether the connections in each channel are visible in presence, in all processes.
        :param dependencies: guard each subscription and each message of a client.
        :param client_publish: whether clients may publish text as it is, without an ``on_publish`` handler;
            ``"binary"`` is for binary frames.
        :param client_presence: whether subscribed clients may read the presence.
        :param client_history: whether subscribed clients may read the history.
        :param token: checks the subscription token that a client sends; it is required unless
            ``JWT(..., required=False)``.
        :raises InvalidChannel: ``pattern`` is not a pattern, or has been declared already; or it and an
            earlier one match the same name, and neither is more specific.
        :raises TypeError: ``history`` is not a ``History``, or ``presence`` not a ``bool``.
        :raises RuntimeError: the hub is running.
        """
        declared = ChannelDeclaration(
            pattern,
            history,
            presence,
            dependencies=dependencies,
            client_publish=client_publish,
            client_presence=client_presence,
            client_history=client_history,
            token=token,
        )
        self._channels.add(declared)
        self._publish_docs.follow(declared, self._dependencies)
        return declared

    def include(self, channels: Channels, *, prefix: str = "", dependencies: Sequence[Depends] = ()) -> None:
        """Add the channels and rpc methods of a collection, before the hub starts.

        :param prefix: put before each pattern and each name of a method.
        :param dependencies: run after those of the hub and before those of the collection.
        :raises InvalidChannel: a pattern has been declared already, or matches names of another.
        :raises InvalidHandler: an rpc method has been declared already.
        :raises RuntimeError: the hub is running.
        :raises TypeError: ``channels`` is not a ``Channels``, or another parameter has the wrong type.
        """
        if not isinstance(channels, Channels):
            raise TypeError(f"Expected a Channels, but got {type(channels).__name__}.")
        if not isinstance(prefix, str):
            raise TypeError(f"Expected a prefix as str, but got {prefix!r}.")
        self._check_stopped("a collection")
        outer = (*check_dependency_list(dependencies, "hub.include()"), *channels.dependencies)
        for declaration in channels.declarations:
            copy = declaration.with_prefix(prefix, outer)
            self._channels.add(copy)
            self._publish_docs.follow(copy, self._dependencies)
        for method in channels.methods.values():
            renamed = Method(prefix + method.name, method.declared, (*outer, *method.dependencies))
            add_method(self._methods, renamed)
        channels.close()

    async def history(
        self,
        channel: str,
        *,
        since: Position | str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Publication]:
        """Return the publications that ``channel`` keeps, the oldest first.

        :param since: only publications after this position, or before it with ``reverse``; a ``Position``, or
            its id.
        :param limit: the greatest number of publications.
        :param reverse: the newest first.
        :raises Unrecoverable: publications after ``since`` are missing.
        :raises InvalidPosition: ``since`` is not the id of a position.
        :raises InvalidChannel: the channel is not declared with a history.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        self._channels.check_history(check_channel(channel))
        since = None if since is None else check_position(since)
        if limit is not None:
            check_count("limit", limit, least=0)
        await self._running()
        page = await self.engine.history(channel, since, limit, reverse)
        publications = list(page.publications)
        if since is not None and not reverse:
            first = publications[0].offset if publications else page.position.offset + 1
            is_other_epoch = since != START and since.epoch != page.position.epoch
            if is_other_epoch or (limit != 0 and first != since.offset + 1):
                raise Unrecoverable(channel, *page.position)
        return publications

    async def position(self, channel: str) -> Position:
        """Return the present position of ``channel``: that of its newest publication.

        It joins a state that a route returns to the stream: the route reads the position first, then the
        state, and returns both, and the client subscribes with this position as ``since``. Each change that
        was committed before it was published is then in the state, or follows. Some may be in both.

        :return: the position in the engine. ``START``, whose id is ``"start"``, in a channel that has never
            been used, or that has been forgotten since.
        :raises InvalidChannel: the channel is not declared with a history.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        self._channels.check_history(check_channel(channel))
        await self._running()
        (top,) = await self.engine.tops([channel])
        return top.position

    async def remove_history(self, channel: str) -> None:
        """Remove the history of ``channel``. Clients that reconnect cannot resume, and learn that.

        When this returns, the history is removed in this process, and in every other process that reaches the
        engine; the remaining processes follow as soon as they reach it again.

        :raises InvalidChannel: a channel cannot have this name.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        check_channel(channel)
        node = await self._running()
        await node.remove_history(channel)

    async def presence(self, channel: str) -> Presence:
        """Return the presence of ``channel``: an entry for each connection in it, in all processes.

        :raises InvalidChannel: the channel is not declared with ``presence=True``.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        check_channel(channel)
        node = await self._running()
        if not node.has_presence(channel):
            raise InvalidChannel(
                f"Expected a channel that is declared with presence=True, but {channel!r} is not."
            )
        return await node.presence(channel)

    # Publishing

    async def publish(
        self,
        channel: str,
        data: object,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | None = None,
        using: object = None,
    ) -> Position:
        """Send ``data`` to all subscribers of ``channel``, in all processes.

        When this returns, the engine has accepted the publication.

        :param channel: 1 to 255 characters, none of them a control character.
        :param data: ``str`` is sent as text, ``bytes`` as binary, any other data (a pydantic model, a
            dataclass, a dict, a list, a number) as JSON text.
        :param exclude: a connection, or the id of one, that does not get the publication.
        :param idempotency_key: publish only once for this key within five minutes, however often this is
            called, for example by a task that is retried. 1 to 255 characters.
        :param using: publish as a part of the transaction of this database connection: with its commit, and
            never without. On ``postgresql://`` only: a connection of asyncpg, an ``AsyncConnection`` of
            psycopg, or an ``AsyncSession`` or ``AsyncConnection`` of SQLAlchemy. Other publishers to the
            channel wait until the transaction ends; errors of the driver are raised unchanged.
        :return: the publication's position in the channel. Channels without history have no positions: all
            of their publications are at offset 0.
        :raises InvalidChannel: a channel cannot have this name.
        :raises EngineUnavailable: the engine cannot be reached. The publication may have been accepted.
        :raises InvalidData: ``data`` cannot be encoded.
        :raises TypeError: the engine cannot publish with ``using``, or another parameter has the wrong type.
        :raises ValueError: ``idempotency_key`` is empty or too long.
        :raises HubNotRunning: the hub has not started, or has stopped.
        """
        publication = self._publication(channel, data, exclude)
        check_key(idempotency_key)
        node = await self._running()
        return await node.publish(publication, idempotency_key, using)

    def publish_sync(
        self,
        channel: str,
        data: object,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        """Publish from a thread of the app, such as a ``def`` endpoint or a thread pool.

        ::

            @app.post("/deploys")
            def deploy(version: str) -> None:
                hub.publish_sync("deploys", {"version": version})

        This works on every engine, and waits until the engine has accepted the publication. Other processes
        use :class:`hubbub.Publisher`. The parameters are those of :meth:`publish`.

        :return: the publication's position in the channel.
        :raises InvalidChannel: a channel cannot have this name.
        :raises EngineUnavailable: the engine cannot be reached, or the hub's event loop does not answer
            within 30 seconds.
        :raises InvalidData: ``data`` cannot be encoded.
        :raises TypeError: a parameter has the wrong type.
        :raises ValueError: ``idempotency_key`` is empty or too long.
        :raises HubNotRunning: the hub has not started, or has stopped, or stops meanwhile.
        :raises RuntimeError: an event loop is running in this thread, and would be blocked.
        """
        refuse_event_loop("hub.publish_sync()", "'await hub.publish(…)'")
        publication = self._publication(channel, data, exclude)
        check_key(idempotency_key)
        return self._lifecycle.call(lambda node: node.publish(publication, idempotency_key))

    def _publication(self, channel: str, data: object, exclude: Connection | str | None) -> Publication:
        kind, encoded = encode(data)
        excluded = None if exclude is None else connection_id(exclude)
        return Publication(check_channel(channel), encoded, kind, excluded, id=next(self._ids))

    # Administration

    async def disconnect(
        self,
        *,
        user: User | None = None,
        connection: Connection | str | None = None,
        code: int = CloseCode.FORCE_DISCONNECT,
        reason: str = "disconnected",
    ) -> None:
        """Close connections in all processes. Messages that wait for them are sent first.

        When this returns, every process that reaches the engine begins to close them; the remaining processes
        follow as soon as they reach it again.

        :param user: all connections with this ``user``. An ``int`` or a ``UUID`` becomes its ``str``.
        :param connection: one connection, or the id of one.
        :param code: 1000 to 1014 as in :rfc:`6455#section-7.4.1`, or 3000 to 4999.
        :param reason: cut to the 123 bytes that fit into a close frame.
        :raises ValueError: ``user`` and ``connection`` are both given or both missing, or ``code`` may not be
            sent.
        :raises TypeError: ``user`` or ``connection`` has another type.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        if (user is None) == (connection is None):
            raise ValueError("Expected either user=… or connection=…, but got both or neither.")
        command = Disconnect(
            check_code(code),
            clip_reason(reason),
            None if user is None else user_id(user),
            None if connection is None else connection_id(connection),
        )
        node = await self._running()
        await node.command(command)

    async def recheck(self, *, user: User) -> None:
        """Check the permissions of a user's connections again, in all processes.

        Call this when the user's permissions have changed. For each channel that they are subscribed to
        through a door, the dependencies and ``on_subscribe`` of the channel run again. If these refuse, the
        subscription ends. Connections of your own endpoints, which subscribe to channels by themselves, are
        not affected; :meth:`disconnect` closes them.

        When this returns, every process that reaches the engine begins to check; the remaining processes
        follow as soon as they reach it again. A few connections are checked at a time. A check that fails by
        an error, or takes longer than 30 seconds, closes its connection with 1011, so that the client
        connects and is checked again.

        :param user: an ``int`` or a ``UUID`` becomes its ``str``.
        :raises TypeError: ``user`` has another type.
        :raises ValueError: ``user`` is empty: connections without a user cannot be told apart.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        command = Recheck(user_id(user))
        if not command.user:
            raise ValueError("Expected a user to recheck, but got an empty one, which no connection has.")
        node = await self._running()
        await node.command(command)

    async def health(self, timeout: float = 2.0) -> Health:
        """Ask the engine whether the hub can do its work.

        :param timeout: seconds that the engine has for its answer.
        :raises HubNotRunning: the hub has not started, or has stopped.
        """
        check_seconds("timeout", timeout)
        node = await self._running()
        return await node.health(timeout)

    def stats(self) -> Stats:
        """Return counts of this process.

        :raises HubNotRunning: the hub has not started, or has stopped.
        """
        return Stats(**self._lifecycle.running().stats())

    @property
    def metrics(self) -> MetricsRouter:
        """The router with ``GET /metrics``, for Prometheus.

        ::

            app.include_router(hub.metrics)

        It needs the extra ``metrics``. FastAPI's own telemetry gets the same metrics without this router, if
        it is on.

        :raises MissingExtra: the package ``prometheus-client`` is not installed.
        """
        if self._metrics is None:
            self._metrics = MetricsRouter(self._measured)
        return self._metrics
