"""The hub: what applications hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, get_args
from weakref import WeakSet

from fastapi import APIRouter
from starlette.types import Lifespan
from starlette.websockets import WebSocket

from hubbub.channels.declaration import ChannelDeclaration
from hubbub.channels.registry import Registry
from hubbub.codes import CloseCode, check_code, clip_reason
from hubbub.connection.connection import Connection, ConnectionOptions, connection_id
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
from hubbub.exceptions import EngineUnavailable, HubbubError, InvalidChannel, Unrecoverable
from hubbub.node.control import Disconnect
from hubbub.node.lifecycle import Lifecycle
from hubbub.node.node import Node
from hubbub.security.hosts import parse_hosts
from hubbub.security.logs import protect_logs
from hubbub.security.origins import parse_origins
from hubbub.servers.adoption import adopt_server, adopt_server_of
from hubbub.servers.stopping import Stopping
from hubbub.servers.workers import the_only_worker
from hubbub.threads import refuse_event_loop
from hubbub.types import Health, Presence, SlowConsumer, User, check_count, check_seconds, user_id

#: Every hub of this process. ``hubbub run`` looks here for hubs that do not work with several workers.
hubs: WeakSet[Hub] = WeakSet()


@dataclass(frozen=True, slots=True)
class Stats:
    """What a hub is doing in this process.

    :param connections: clients connected.
    :param subscriptions: members of all channels; a client in two channels counts twice.
    :param channels: channels that have a member.
    :param backlog: bytes that wait for clients which do not keep up.
    :param dropped: messages that ``drop_oldest`` and ``latest`` dropped for them, since the hub started.
    :param slow_disconnects: connections closed as too slow, since the hub started.
    :param engine_outages: outages of the engine since the hub started.
    :param engine_outage_seconds: seconds since the engine was lost; 0 while it is connected.
    """

    connections: int
    subscriptions: int
    channels: int
    backlog: int
    dropped: int
    slow_disconnects: int
    engine_outages: int
    engine_outage_seconds: float


class HubRouter(APIRouter):
    """A router that knows whether it is included in an app, or in another router."""

    def __init__(self, lifespan: Lifespan[Any]) -> None:
        super().__init__(lifespan=lifespan)
        #: Whether its lifespan has been taken, which is what including a router does.
        self.is_included = False

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

        hub = Hub()
        app = FastAPI()
        app.include_router(hub.router)  # starts and stops the hub with the app

    :param url: the engine. ``memory://`` works within one process, ``sqlite:///hub.db`` across the workers of
        one machine, ``redis://`` and ``postgresql://`` across many.
    :param namespace: keeps apart the channels of several apps that share one engine.
    :param allow_origins: web pages of other hosts that may connect, such as ``"https://example.com"``;
        ``"*"`` allows every page. Pages from the host they connect to may always, and so may whatever is
        not a browser.
    :param hosts: names that clients may connect to, such as ``"example.com"``, addresses, and networks such
        as ``"10.0.0.0/8"``, without ports; against DNS rebinding. A connection to any other is refused with
        403. ``None`` checks nothing.
    :param max_message_size: bytes a client may send in one message; more closes its connection with 1009.
    :param outbox_limit: bytes that may wait for one client that does not keep up. Each message counts its
        payload and 256 bytes.
    :param slow_consumer: what happens when more would have to wait: ``"disconnect"`` lets the client go
        with 3008, ``"drop_oldest"`` drops the oldest messages that wait, ``"latest"`` keeps the newest
        message of each channel only.
    :param send_timeout: seconds after which a client that takes nothing of what is sent to it is let go.
    :param close_timeout: seconds that a client has to take what still waits when its connection is closed.
    :param presence_ttl: seconds within which the clients of a process that was killed have left, for those
        who look at presence. For an outage of the engine that is shorter, nobody has.
    :raises InvalidURL: no engine has the URL's scheme.
    :raises MissingExtra: the engine needs a package that is not installed.
    :raises TypeError: another parameter is of the wrong type.
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
        outbox_limit: int = 1_048_576,
        slow_consumer: SlowConsumer = "disconnect",
        send_timeout: float = 30.0,
        close_timeout: float = 5.0,
        presence_ttl: float = 30.0,
    ) -> None:
        check_count("max_message_size", max_message_size, least=1)
        check_count("outbox_limit", outbox_limit, least=1)
        check_seconds("send_timeout", send_timeout)
        check_seconds("close_timeout", close_timeout)
        check_seconds("presence_ttl", presence_ttl)
        self._options = ConnectionOptions(
            allow_origins=parse_origins(allow_origins),
            hosts=parse_hosts(hosts),
            max_message_size=max_message_size,
            outbox_limit=outbox_limit,
            slow_consumer=_check_policy(slow_consumer),
            send_timeout=send_timeout,
            close_timeout=close_timeout,
        )
        #: Where this hub's publications meet those of other processes.
        self.engine = engine_for(url, namespace)
        #: ``app.include_router(hub.router)`` starts and stops the hub with the app.
        self.router = HubRouter(self._lifespan)

        self._presence_ttl = presence_ttl
        self._channels = Registry()
        self._ids = publication_ids()
        self._lifecycle = Lifecycle(self._start, self._stop)
        # What to undo when the node has stopped.
        self._undo = AsyncExitStack()
        #: Tells streams that the server begins to stop; see :class:`~hubbub.servers.stopping.Stopping`.
        self.stopping = Stopping()
        # Whether it is known which server this is.
        self._knows_server = False
        hubs.add(self)

    def __repr__(self) -> str:
        return f"<Hub {type(self.engine).__name__} {self._lifecycle.state}>"

    # Lifecycle

    async def __aenter__(self) -> Self:
        """Start the hub on this event loop. Entered again, it stops with the last exit.

        :raises EngineUnavailable: the engine cannot be reached.
        :raises HubNotRunning: the hub runs on another event loop.
        :raises InvalidURL: the engine is ``memory://``, and this process is one of several workers.
        """
        if not self._knows_server:
            # Here, since this is the task of the server's lifespan; a hub may start in any other.
            self._knows_server = adopt_server(self.stopping)
        try:
            await self._lifecycle.__aenter__()
        except HubbubError as exc:
            # The message says it all; where in Hubbub it was noticed is of no use to anybody.
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
            yield

    async def _start(self) -> Node:
        protect_logs()
        async with AsyncExitStack() as undo:
            if not (self.engine.across_processes or self.engine.is_alone):
                await undo.enter_async_context(the_only_worker())
            node = Node(self.engine, self._channels.find, self._presence_ttl, self._channels.check_history)
            try:
                await node.start(has_presence=any(declared.presence for declared in self._channels))
            except EngineUnavailable as exc:
                raise EngineUnavailable(
                    f"{exc} To find out more, run: {doctor_command(self.engine.url, self.engine.namespace)}"
                ) from None
            self._undo = undo.pop_all()
        return node

    async def _stop(self, node: Node) -> None:
        self.stopping.begin()
        self.stopping = Stopping()
        self._knows_server = False
        async with self._undo:
            # What is still connected is asked to come back; the handlers may publish until the end.
            await node.stop(CloseCode.SERVICE_RESTART, "restart", self._options.close_timeout)

    async def _running(self) -> Node:
        """The running node; started now, if the app has not come to that yet.

        :raises HubNotRunning: the hub is not included in an app and has not started, or has stopped.
        """
        if self._lifecycle.node is None and self.router.is_included:
            try:
                await self._lifecycle.start_early()
            except HubbubError as exc:
                raise exc.with_traceback(None) from None
        return self._lifecycle.running()

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
        """A client's socket as a member of this hub, to be used as ``async with hub.connection(websocket)``.

        :param websocket: as FastAPI passes it to the endpoint. It is accepted when the block is entered,
            unless it has been before.
        :param user: who this is, if the application knows. An ``int`` or a ``UUID`` stands for its ``str``.
        :param subprotocol: the one accepted of those in ``websocket.scope["subprotocols"]``.
        :param headers: sent with the acceptance.
        :param slow_consumer: instead of the hub's.
        :raises HubNotRunning: the hub has not started, or has stopped.
        :raises TypeError: ``user`` is something else.
        """
        node = self._lifecycle.running()
        if not self._knows_server:
            self._knows_server = True
            adopt_server_of(websocket, self.stopping)
        options = self._options
        if slow_consumer is not None:
            options = replace(options, slow_consumer=_check_policy(slow_consumer))
        return Connection(node, websocket, options, user=user, subprotocol=subprotocol, headers=headers)

    # Channels

    def channel(
        self, pattern: str, *, history: History | None = None, presence: bool = False
    ) -> ChannelDeclaration:
        """Declare channels, before the hub starts.

        :param pattern: a channel's name, in which ``{name}`` stands for one or more characters other than
            ``:`` and ``/``, and ``{name:path}`` for one or more characters: ``"room:{room_id}"``,
            ``"file:{path:path}"``. Of several that fit a name, the one declared first counts.
        :param history: what each of them keeps, so that clients can catch up; ``None`` keeps nothing.
        :param presence: whether it is known, in all processes, who is in each of them.
        :raises InvalidChannel: the pattern is not one, or has been declared already.
        :raises TypeError: ``history`` is no ``History``, or ``presence`` no ``bool``.
        """
        declared = ChannelDeclaration(pattern, history, presence)
        self._channels.add(declared)
        return declared

    async def history(
        self,
        channel: str,
        *,
        since: Position | str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Publication]:
        """What ``channel`` has kept, the oldest first.

        :param since: only what was published after this position (before it, if ``reverse``); also as its id.
        :param limit: publications at the most.
        :param reverse: the newest first.
        :raises Unrecoverable: not everything since ``since`` is there.
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

    async def remove_history(self, channel: str) -> None:
        """Forget what ``channel`` has kept. Clients that come back cannot catch up, and are told.

        When this returns, that is so in this process, and every other process has been told, or will be as
        soon as it can hear the engine again.

        :raises InvalidChannel: not a name a channel can have.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        check_channel(channel)
        node = await self._running()
        await node.remove_history(channel)

    async def presence(self, channel: str) -> Presence:
        """Who is in ``channel``, in all processes: one entry for each connection that has subscribed to it.
        Its ``users`` are the same by user.

        :raises InvalidChannel: it is not declared with ``presence=True``.
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
        """Send ``data`` to everyone in ``channel``.

        :param channel: 1 to 255 characters, none of them a control character.
        :param data: ``str`` goes out as text, ``bytes`` as binary, anything else (a pydantic model, a
            dataclass, a dict, a list, a number) as JSON text.
        :param exclude: a connection, or the id of one, that is not to get it.
        :param idempotency_key: publish it once only, however often this is called with the same key within
            five minutes, as a task may be that is tried again. 1 to 255 characters.
        :param using: publish as a part of the transaction of this database connection: with its commit, and
            never without. On ``postgresql://`` only: a connection of asyncpg, an ``AsyncConnection`` of
            psycopg, or an ``AsyncSession`` or ``AsyncConnection`` of SQLAlchemy. Others who publish to the
            channel wait until the transaction ends; what the driver raises is not changed.
        :return: where the message stands in the channel. Channels without history have no positions; all
            of their messages are at offset 0.
        :raises InvalidChannel: not a name a channel can have.
        :raises EngineUnavailable: the engine cannot be reached.
        :raises InvalidData: ``data`` cannot be encoded.
        :raises TypeError: the engine cannot publish with ``using``, or another parameter is of the wrong
            type.
        :raises ValueError: ``idempotency_key`` is not one.
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
        """Send ``data`` to everyone in ``channel``, from a thread of the app: a ``def`` endpoint, a thread
        pool.

        ::

            @app.post("/deploys")
            def deploy(version: str) -> None:
                hub.publish_sync("deploys", {"version": version})

        It works on every engine, and waits until the engine has accepted the message. Other processes use
        :class:`hubbub.Publisher`. The parameters are those of :meth:`publish`.

        :raises InvalidChannel: not a name a channel can have.
        :raises EngineUnavailable: the engine cannot be reached, or the hub's event loop does not answer
            within 30 seconds.
        :raises InvalidData: ``data`` cannot be encoded.
        :raises TypeError: a parameter is of the wrong type.
        :raises ValueError: ``idempotency_key`` is not one.
        :raises HubNotRunning: the hub has not started, or has stopped, or stops meanwhile.
        :raises RuntimeError: an event loop is running in this thread, which would have to wait.
        """
        refuse_event_loop("hub.publish_sync()", "'await hub.publish(…)'")
        publication = self._publication(channel, data, exclude)
        check_key(idempotency_key)
        return self._lifecycle.call(lambda node: node.publish(publication, idempotency_key))

    def _publication(self, channel: str, data: object, exclude: Connection | str | None) -> Publication:
        kind, encoded = encode(data)
        excluded = None if exclude is None else connection_id(exclude)
        return Publication(check_channel(channel), encoded, kind, excluded, id=next(self._ids))

    # Looking after it

    async def disconnect(
        self,
        *,
        user: User | None = None,
        connection: Connection | str | None = None,
        code: int = CloseCode.FORCE_DISCONNECT,
        reason: str = "disconnected",
    ) -> None:
        """Close connections, in whichever process they are. What waits for them is sent first.

        When this returns, every process has been told, or will be as soon as it can hear the engine again.

        :param user: all connections that were made with this ``user``. An ``int`` or a ``UUID`` stands for
            its ``str``.
        :param connection: one connection, or the id of one.
        :param code: 1000 to 1014 as in :rfc:`6455#section-7.4.1`, or 3000 to 4999.
        :param reason: cut to the 123 bytes that fit into a close frame.
        :raises ValueError: neither a user nor a connection is given, or both; or the code may not be sent.
        :raises TypeError: ``user`` or ``connection`` is something else.
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

    async def health(self, timeout: float = 2.0) -> Health:
        """Whether the hub can do its work: asks the engine.

        :param timeout: seconds that the engine has for its answer.
        :raises HubNotRunning: the hub has not started, or has stopped.
        """
        check_seconds("timeout", timeout)
        node = await self._running()
        return await node.health(timeout)

    def stats(self) -> Stats:
        """What the hub is doing in this process.

        :raises HubNotRunning: the hub has not started, or has stopped.
        """
        return Stats(**self._lifecycle.running().stats())


def _check_policy(policy: SlowConsumer) -> SlowConsumer:
    if policy not in get_args(SlowConsumer):
        raise ValueError(f"Expected slow_consumer to be one of {get_args(SlowConsumer)}, but got {policy!r}.")
    return policy
