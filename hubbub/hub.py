"""The hub: what applications hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, get_args
from weakref import WeakSet

from fastapi import APIRouter
from starlette.websockets import WebSocket

from hubbub.channels import Channel
from hubbub.codes import CloseCode, check_code, clip_reason
from hubbub.connection import Connection, ConnectionOptions
from hubbub.control import Disconnect
from hubbub.core.publication import (
    START,
    Position,
    Publication,
    check_channel,
    check_position,
    encode,
    publication_ids,
)
from hubbub.engines import engine_for
from hubbub.exceptions import HubNotRunning, InvalidChannel, Unrecoverable
from hubbub.hosts import parse_hosts
from hubbub.logs import protect_logs
from hubbub.node import Node
from hubbub.origins import parse_origins
from hubbub.servers.adoption import adopt_server, adopt_server_of
from hubbub.servers.stopping import Stopping
from hubbub.types import Health, History, Presence, SlowConsumer

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
    :param let_go: clients let go because they did not keep up, since the hub started.
    :param outages: how often the engine has been away since the hub started.
    :param away: seconds for which it has been away now; 0 if it is there.
    """

    connections: int
    subscriptions: int
    channels: int
    backlog: int
    dropped: int
    let_go: int
    outages: int
    away: float


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
        for name, value in {
            "max_message_size": max_message_size,
            "outbox_limit": outbox_limit,
            "send_timeout": send_timeout,
            "close_timeout": close_timeout,
            "presence_ttl": presence_ttl,
        }.items():
            if not value > 0:
                raise ValueError(f"Expected {name} to be greater than 0, but got {value!r}.")
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
        self.router = APIRouter(lifespan=self._lifespan)

        self._presence_ttl = presence_ttl
        self._channels: list[Channel] = []
        self._ids = publication_ids()
        self._node: Node | None = None
        self._entered = 0
        self._has_run = False
        #: Tells streams that the server begins to stop; see :class:`~hubbub.servers.stopping.Stopping`.
        self.stopping = Stopping()
        # Whether it is known which server this is.
        self._knows_server = False
        hubs.add(self)

    def __repr__(self) -> str:
        state = "running" if self._node else "stopped" if self._has_run else "not started"
        return f"<Hub {type(self.engine).__name__} {state}>"

    # Start and stop

    async def __aenter__(self) -> Self:
        """Start the hub on this event loop. Entered again, it stops with the last exit."""
        if not self._knows_server:
            self._knows_server = adopt_server(self.stopping)
        if self._node is None:
            protect_logs()
            node = Node(self.engine, self._channel_of, self._presence_ttl)
            await node.start(keeps_presence=any(declared.presence for declared in self._channels))
            self._node = node
            self._has_run = True
        self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered == 0 and self._node is not None:
            self.stopping.begin()
            self.stopping = Stopping()
            self._knows_server = False
            try:
                # What is still connected is asked to come back; the handlers may publish until the end.
                await self._node.stop(CloseCode.SERVICE_RESTART, "restart", self._options.close_timeout)
            finally:
                self._node = None

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        async with self:
            yield

    # Connections

    def connection(
        self,
        websocket: WebSocket,
        *,
        user: str | None = None,
        subprotocol: str | None = None,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
        slow_consumer: SlowConsumer | None = None,
    ) -> Connection:
        """A client's socket as a member of this hub, to be used as ``async with hub.connection(websocket)``.

        :param websocket: as FastAPI passes it to the endpoint. It is accepted when the block is entered,
            unless it has been before.
        :param user: who this is, if the application knows.
        :param subprotocol: the one accepted of those in ``websocket.scope["subprotocols"]``.
        :param headers: sent with the acceptance.
        :param slow_consumer: instead of the hub's.
        :raises HubNotRunning: the hub has not started, or has stopped.
        """
        node = self._running()
        if not self._knows_server:
            self._knows_server = True
            adopt_server_of(websocket, self.stopping)
        options = self._options
        if slow_consumer is not None:
            options = replace(options, slow_consumer=_check_policy(slow_consumer))
        return Connection(node, websocket, options, user=user, subprotocol=subprotocol, headers=headers)

    # Channels

    def channel(self, pattern: str, *, history: History | None = None, presence: bool = False) -> Channel:
        """Declare channels, before the hub starts.

        :param pattern: a channel's name, in which ``{…}`` stands for one or more characters other than ``:``
            and ``/``: ``"room:{room_id}"``. Of several that fit a name, the one declared first counts.
        :param history: what each of them keeps, so that clients can catch up; ``None`` keeps nothing.
        :param presence: whether it is known, in all processes, who is in each of them.
        :raises InvalidChannel: the pattern is not one, or has been declared already.
        """
        if any(declared.pattern == pattern for declared in self._channels):
            raise InvalidChannel(
                f"Expected each channel to be declared once, but {pattern!r} is declared twice."
            )
        declared = Channel(pattern, history, presence)
        self._channels.append(declared)
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
        :raises InvalidChannel: not a name a channel can have.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        self._running()
        since = None if since is None else check_position(since)
        page = await self.engine.history(check_channel(channel), since, limit, reverse)
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
        await self._running().remove_history(check_channel(channel))

    async def presence(self, channel: str) -> Presence:
        """Who is in ``channel``, in all processes: one entry for each connection that has subscribed to it.
        Its ``users`` are the same by user.

        :raises InvalidChannel: it is not declared with ``presence=True``.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        node = self._running()
        if not node.has_presence(check_channel(channel)):
            raise InvalidChannel(
                f"Expected a channel that is declared with presence=True, but {channel!r} is not."
            )
        return await node.presence(channel)

    def _channel_of(self, name: str) -> Channel | None:
        for declared in self._channels:
            if declared.fits(name):
                return declared
        return None

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
            five minutes, as a task may be that is tried again.
        :param using: publish as a part of the transaction of this database connection: with its commit, and
            never without. On ``postgresql://`` only: a connection of asyncpg, an ``AsyncConnection`` of
            psycopg, or an ``AsyncSession`` or ``AsyncConnection`` of SQLAlchemy. Others who publish to the
            channel wait until the transaction ends; what the driver raises is not changed.
        :return: where the message stands in the channel. Channels without history have no positions; all
            of their messages are at offset 0.
        :raises InvalidChannel: not a name a channel can have.
        :raises EngineUnavailable: the engine cannot be reached.
        :raises InvalidData: ``data`` cannot be encoded.
        :raises TypeError: the engine cannot publish with ``using``.
        :raises HubNotRunning: the hub has not started, or has stopped.
        """
        node = self._running()
        kind, encoded = encode(data)
        excluded = exclude.id if isinstance(exclude, Connection) else exclude
        publication = Publication(check_channel(channel), encoded, kind, excluded, id=next(self._ids))
        return await node.publish(publication, idempotency_key, using)

    # Looking after it

    async def disconnect(
        self,
        *,
        user: str | None = None,
        connection: Connection | str | None = None,
        code: int = CloseCode.FORCE_DISCONNECT,
        reason: str = "disconnected",
    ) -> None:
        """Close connections, in whichever process they are. What waits for them is sent first.

        When this returns, every process has been told, or will be as soon as it can hear the engine again.

        :param user: all connections that were made with this ``user``.
        :param connection: one connection, or the id of one.
        :param code: 1000 to 1014 as in :rfc:`6455#section-7.4.1`, or 3000 to 4999.
        :param reason: cut to the 123 bytes that fit into a close frame.
        :raises ValueError: neither a user nor a connection is given, or both; or the code may not be sent.
        :raises EngineUnavailable: the engine cannot be reached.
        """
        node = self._running()
        if (user is None) == (connection is None):
            raise ValueError("Expected either user=… or connection=…, but got both or neither.")
        id_ = connection.id if isinstance(connection, Connection) else connection
        await node.command(Disconnect(check_code(code), clip_reason(reason), user, id_))

    async def health(self, timeout: float = 2.0) -> Health:
        """Whether the hub can do its work: asks the engine.

        :param timeout: seconds that the engine has for its answer.
        :raises HubNotRunning: the hub has not started, or has stopped.
        """
        return await self._running().health(timeout)

    def stats(self) -> Stats:
        """What the hub is doing in this process.

        :raises HubNotRunning: the hub has not started, or has stopped.
        """
        return Stats(**self._running().stats())

    def _running(self) -> Node:
        node = self._node
        if node is None:
            if self._has_run:
                raise HubNotRunning("Expected a running hub, but this one has stopped.")
            raise HubNotRunning(
                "Expected a running hub, but this one has not started. Add app.include_router(hub.router) to "
                "start it with the app, or use it inside of 'async with hub'. (The lifespan of an app that "
                "is mounted in another one does not run: include the router in the outer app. TestClient "
                "runs lifespans only as 'with TestClient(app) as client'.)"
            )
        if _running_loop() is not node.loop:
            raise HubNotRunning(
                "Expected the event loop on which the hub was started, but this is another loop or a thread. "
                "(FastAPI runs 'def' endpoints in threads: make it 'async def', or use a Publisher.)"
            )
        return node


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _check_policy(policy: SlowConsumer) -> SlowConsumer:
    if policy not in get_args(SlowConsumer):
        raise ValueError(f"Expected slow_consumer to be one of {get_args(SlowConsumer)}, but got {policy!r}.")
    return policy
