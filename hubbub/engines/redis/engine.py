"""The engine for ``redis://`` and its relatives: sessions, one after another, and what is asked of them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from hashlib import sha1
from itertools import chain
from pathlib import Path
from secrets import token_hex
from typing import Any, ClassVar, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from hubbub.core.publication import START, Position, Publication, pack, unpack
from hubbub.engines.backoff import RETRY_MAX, Backoff
from hubbub.engines.base import IDEMPOTENCY_WINDOW, Engine, Finding, Page, Sink
from hubbub.engines.redis.inspection import inspect
from hubbub.engines.redis.link import ANSWER_TIMEOUT, CONNECT_TIMEOUT, Link, Request
from hubbub.engines.redis.url import parse_url
from hubbub.exceptions import EngineUnavailable, HubNotRunning, InvalidData
from hubbub.types import History

logger = logging.getLogger("hubbub.engines.redis")

#: Seconds between two looks at what is overdue, and between two questions whether the server is still there.
TICK = 0.25
PING_INTERVAL = 2.0

#: Seconds until a sentinel must answer; then the next one is asked.
SENTINEL_TIMEOUT = 1.0

#: Channels that are named in one SUBSCRIBE after a reconnection.
SUBSCRIBE_CHUNK = 500

#: What a cluster divides its keys into.
SLOTS = 16384

#: Redis counts in 64 bits, Lua in doubles. Nobody keeps more, or for longer (some 30 years, in seconds).
MAX_OFFSET = 2**53
MAX_TTL = 1e9

# Braces in a key say what decides about its place in a cluster; "%" is what they are quoted with.
_QUOTED = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


class Script:
    """One of the scripts in ``lua``."""

    def __init__(self, name: str) -> None:
        directory = Path(__file__).with_name("lua")
        files = (directory / "stream.lua", directory / f"{name}.lua")
        self.source = "\n".join(file.read_text(encoding="utf-8") for file in files)
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()


PUBLISH, READ, REMOVE = SCRIPTS = (Script("publish"), Script("read"), Script("remove"))


class Session(NamedTuple):
    """The connections that make a node able to hear and speak: two to each of the cluster's primaries, or to
    the one server.

    :param slots: which of them each of the cluster's slots lies on; empty without a cluster.
    """

    commands: Sequence[Link]
    listeners: Sequence[Link]
    slots: Sequence[int]

    @property
    def links(self) -> tuple[Link, ...]:
        return (*self.commands, *self.listeners)

    def slot(self, key: bytes) -> int:
        return key_slot(key) if self.slots else 0

    def send(self, request: Request) -> None:
        """Send a command to where its key lies."""
        self._pick(self.commands, request).send(request)

    def listen(self, request: Request) -> None:
        """Send a command to whom we listen to about its key."""
        self._pick(self.listeners, request).send(request)

    def _pick(self, links: Sequence[Link], request: Request) -> Link:
        return links[self.slots[key_slot(request.key)]] if self.slots else links[0]


class Server(NamedTuple):
    """Where to connect to, and what it is called in messages."""

    options: dict[str, Any]
    where: str


class RedisEngine(Engine):
    """One Redis or Valkey server, or whichever of several is the primary.

    Every call ends within ``ANSWER_TIMEOUT`` seconds. While the server is away, calls wait that long for it
    to come back; then, and if the connection breaks while an answer is outstanding, they raise
    :class:`~hubbub.exceptions.EngineUnavailable`. In the latter case a publication may have been accepted.

    Positions and idempotency keys are as durable as the server is set up to make them.
    """

    across_processes: ClassVar[bool] = True

    def __init__(self, url: str, namespace: str = "hubbub") -> None:
        super().__init__(url, namespace)
        self._target = parse_url(url)
        # Databases share their channels; what lies in different ones is to be kept apart all the same.
        self._suffix = str(self._target.options["db"])
        self._prefix = namespace.translate(_QUOTED)
        self._sharded = "S" if self._target.nodes else ""
        # The primaries of the cluster, when it was seen last.
        self._nodes: Sequence[tuple[str, int]] = ()
        self._sink: Sink | None = None
        self._session: Session | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked = self._pinged = 0.0
        # Why there is no session, in words; and set when one has ended.
        self._trouble = ""
        self._lost = asyncio.Event()
        # Those of the session, or of the one that is about to be.
        self._links: tuple[Link, ...] = ()
        # What waits for a session, the oldest first.
        self._waiting: deque[Request] = deque()
        # What is subscribed to: the channel for each channel in Redis.
        self._channels: dict[bytes, str] = {}
        # Channels in which something came that is no publication.
        self._foreign: set[str] = set()

    async def start(self, sink: Sink) -> None:
        if self._sink is not None:
            raise RuntimeError("Expected start() to be called once before stop(), but got it twice.")
        self._session = await self._connect()
        self._sink = sink
        loop = asyncio.get_running_loop()
        self._supervisor = loop.create_task(self._supervise())
        self._ticked = self._pinged = loop.time()
        self._ticker = loop.call_later(TICK, self._tick)

    async def stop(self) -> None:
        self._sink = None
        if self._ticker is not None:
            self._ticker.cancel()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        session, self._session = self._session, None
        if session is not None:
            await _close(session, "the engine stopped")
        while self._waiting:
            self._waiting.popleft().fail("Expected Redis, but the engine stopped.")
        self._channels.clear()
        self._foreign.clear()

    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        base = self._base(publication.channel)
        keys = [f"{base}:meta", f"{base}:log"]
        if idempotency_key is not None:
            keys.append(f"{base}:key:{idempotency_key}")
        answer = await self._run(
            PUBLISH,
            keys,
            f"{self._sharded}PUBLISH",
            self._name(publication.channel),
            pack(publication),
            token_hex(4),
            *_arguments(history),
            int(IDEMPOTENCY_WINDOW * 1000),
        )
        return _position(answer)

    async def subscribe(self, channel: str, history: History | None = None) -> Position:
        self._started()
        name = self._name(channel)
        self._channels[name] = channel
        try:
            # Without a session, the next one begins by subscribing to all there is.
            if self._session is not None:
                request = Request((f"{self._sharded}SUBSCRIBE", name), name, self._deadline())
                self._session.listen(request)
                await request.answer
            return (await self._read(channel, history, limit=0)).position
        except BaseException:
            self._forget(name)
            raise

    async def unsubscribe(self, channel: str) -> None:
        self._started()
        self._foreign.discard(channel)
        answer = self._forget(self._name(channel))
        if answer is not None:
            await answer

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> Page:
        return await self._read(channel, None, since, limit, reverse)

    async def remove_history(self, channel: str) -> None:
        base = self._base(channel)
        await self._run(REMOVE, [f"{base}:meta", f"{base}:log"], token_hex(4))

    async def inspect(self) -> Sequence[Finding]:
        self._started()
        links = self._session.commands if self._session is not None else ()
        found = [await inspect(each.ask, each.where, is_cluster=bool(self._sharded)) for each in links]
        return list(chain.from_iterable(found))

    # Names

    def _base(self, channel: str) -> str:
        """What a channel's keys begin with; by what is in braces they lie on one node of a cluster."""
        return f"{self._prefix}:{{{channel.translate(_QUOTED)}}}"

    def _name(self, channel: str) -> bytes:
        """The channel's name in Redis."""
        return f"{self._base(channel)}:{self._suffix}".encode()

    # Commands

    def _started(self) -> None:
        if self._sink is None:
            raise HubNotRunning("The Redis engine has not been started.")

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + ANSWER_TIMEOUT

    async def _run(self, script: Script, keys: Sequence[str], *arguments: bytes | str | int) -> Any:
        self._started()
        command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
        request = Request(command, keys[0].encode(), self._deadline(), script.source)
        if self._session is None:
            self._waiting.append(request)
        else:
            self._session.send(request)
        return await request.answer

    async def _read(
        self,
        channel: str,
        history: History | None,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Page:
        first, last, expected = ("+", "-", "*") if reverse else ("-", "+", "*")
        if since is not None:
            offset = min(since.offset - 1 if reverse else since.offset + 1, MAX_OFFSET)
            first = str(max(offset, 0))
            if since != START:
                expected = since.epoch
            if reverse and offset < 0:
                limit = 0
        base = self._base(channel)
        position, entries = await self._run(
            READ,
            [f"{base}:meta", f"{base}:log"],
            token_hex(4),
            *_arguments(history),
            expected,
            first,
            last,
            "" if limit is None else limit,
            "XREVRANGE" if reverse else "XRANGE",
        )
        top = _position(position)
        publications = []
        for entry in entries:
            try:
                publications.append(_entry(entry, top.epoch))
            except (InvalidData, ValueError) as exc:
                # What is left has a gap then, which a feed notices.
                self._ignore_foreign(channel, exc)
        return Page(publications, top)

    def _forget(self, name: bytes) -> asyncio.Future[Any] | None:
        """Unsubscribe. Returns what tells when the server has, if it can be told."""
        if self._channels.pop(name, None) is None or self._session is None:
            return None
        request = Request((f"{self._sharded}UNSUBSCRIBE", name), name, self._deadline())
        # Nobody may be waiting for it.
        request.answer.add_done_callback(_ignore)
        self._session.listen(request)
        return request.answer

    # What comes

    def _on_message(self, name: bytes, payload: bytes) -> None:
        channel = self._channels.get(name)
        if channel is None or self._sink is None:
            return
        try:
            publication = _announced(payload)
            if publication.channel != channel:
                raise InvalidData(f"Expected a publication to {channel!r}, but got {publication.channel!r}.")
        except (InvalidData, ValueError) as exc:
            self._ignore_foreign(channel, exc)
            return
        try:
            self._sink.on_publication(publication)
        except Exception:
            logger.exception("Could not hand over a publication to %r.", channel)

    def _ignore_foreign(self, channel: str, exc: Exception) -> None:
        if channel not in self._foreign:
            self._foreign.add(channel)
            logger.warning("Ignored what is no publication in %r, this time and any other: %s", channel, exc)

    # Connections

    async def _supervise(self) -> None:
        """Open a new session whenever one has ended."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        since = loop.time()
        while True:
            await self._lost.wait()
            if loop.time() - since > RETRY_MAX:
                backoff.reset()
            logger.warning("Lost Redis at %s: %s.", self._target.where, self._trouble)
            while True:
                await backoff.wait()
                try:
                    session = await self._connect()
                    break
                except EngineUnavailable as exc:
                    self._trouble = str(exc)
                    logger.info("Still without Redis: %s", exc)
                except Exception as exc:
                    # Whatever it is, nobody else would try again.
                    self._trouble = f"{type(exc).__name__}: {exc}"
                    logger.exception("Could not connect to Redis at %s.", self._target.where)
            since = loop.time()
            # Nothing is awaited between the last look at what is subscribed to, in _connect(), and this.
            self._session = session
            logger.info("Redis at %s is back.", self._target.where)
            while self._waiting:
                session.send(self._waiting.popleft())
            if self._sink is not None:
                self._sink.on_reconnect()

    async def _connect(self) -> Session:
        """Connections that are subscribed to everything.

        :raises EngineUnavailable: that is not to be had.
        """
        self._lost.clear()
        servers, slots = await self._locate()

        def ended(reason: str) -> None:
            self._trouble = reason
            self._session = None
            self._lost.set()
            # The others go with it.
            for link in session.links:
                link.close(reason)

        def link(server: Server) -> Link:
            return Link(self._connection(server), server.where, self._on_message, self._moved, ended)

        session = Session([link(each) for each in servers], [link(each) for each in servers], slots)
        where = self._target.where
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                for each in session.links:
                    await each.connect()
                for each in session.commands:
                    await _prepare(each)
            self._links = session.links
            # However many there are: as long as answers come, it goes on.
            await self._subscribe_all(session)
            if self._lost.is_set():
                raise EngineUnavailable(f"Expected Redis at {where}, but it went again: {self._trouble}.")
        except TimeoutError:
            await _close(session, "no answer")
            raise EngineUnavailable(
                f"Expected Redis at {where}, but got no answer within {CONNECT_TIMEOUT:g} s."
            ) from None
        except BaseException:
            await _close(session, "it is of no use")
            raise
        return session

    def _connection(self, server: Server) -> AbstractConnection:
        return self._target.connection(**server.options)

    def _server(self, host: str, port: int) -> Server:
        return Server(self._target.options | {"host": host, "port": port}, f"{host}:{port}")

    def _moved(self, request: Request) -> None:
        if request.arguments[0] in ("EVALSHA", "EVAL"):
            # Nothing has happened yet: it is for the next session, which will know where to.
            self._waiting.append(request)
        else:
            request.fail(f"Expected {self._target.where} to stay as it was, but it is changing.")

    async def _locate(self) -> tuple[Sequence[Server], Sequence[int]]:
        """The primaries, and which of them each of a cluster's slots lies on.

        :raises EngineUnavailable: nobody knows.
        """
        if self._target.sentinels:
            return [await self._ask_sentinels()], ()
        if not self._target.nodes:
            return [Server(self._target.options, self._target.where)], ()
        trouble = "nobody knows"
        for host, port in dict.fromkeys((*self._nodes, *self._target.nodes)):
            try:
                return await self._ask_node(host, port)
            except EngineUnavailable as exc:
                trouble = str(exc)
        raise EngineUnavailable(f"Expected to learn about {self._target.where}, but: {trouble}")

    async def _ask_node(self, host: str, port: int) -> tuple[Sequence[Server], Sequence[int]]:
        """What the cluster looks like to one of its nodes."""
        server = self._server(host, port)
        link = Link(self._connection(server), server.where, _ignore_message, _ignore_request, logger.debug)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await link.connect()
                ranges = await link.ask("CLUSTER", "SLOTS")
        except TimeoutError:
            raise EngineUnavailable(f"Expected an answer from {server.where}, but got none.") from None
        finally:
            link.close("it has been asked")
            await link.wait_closed()
        primaries: list[tuple[str, int]] = []
        slots = [0] * SLOTS
        for first, last, primary, *_ in ranges:
            # A node that does not know its own name leaves it out.
            address = ((primary[0] or b"").decode() or host, primary[1])
            if address not in primaries:
                primaries.append(address)
            slots[first : last + 1] = [primaries.index(address)] * (last + 1 - first)
        if not primaries:
            raise EngineUnavailable(f"Expected a cluster at {server.where}, but got one without slots.")
        self._nodes = primaries
        return [self._server(*address) for address in primaries], slots

    async def _ask_sentinels(self) -> Server:
        target = self._target
        impatience = {
            "socket_timeout": SENTINEL_TIMEOUT,
            "socket_connect_timeout": SENTINEL_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
        }
        sentinel = Sentinel(target.sentinels, sentinel_kwargs=impatience)  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                host, port = await sentinel.discover_master(target.service)
        except (RedisError, OSError) as exc:
            raise EngineUnavailable(
                f"Expected a primary from {target.where}, but got: {str(exc) or 'no answer'}"
            ) from exc
        finally:
            for each in sentinel.sentinels:
                await each.aclose()
        return self._server(host, port)

    async def _subscribe_all(self, session: Session) -> None:
        """Subscribe to everything that is to be subscribed to when this returns."""
        subscribed: set[bytes] = set()
        while subscribed != self._channels.keys():
            requests: list[Request] = []
            for command, names in (
                ("SUBSCRIBE", self._channels.keys() - subscribed),
                ("UNSUBSCRIBE", subscribed - self._channels.keys()),
            ):
                # One command can only name what lies in one slot.
                by_slot: defaultdict[int, list[bytes]] = defaultdict(list)
                for name in names:
                    by_slot[session.slot(name)].append(name)
                for chunk in chain.from_iterable(map(_chunks, by_slot.values())):
                    verb = f"{self._sharded}{command}"
                    requests.append(Request((verb, *chunk), chunk[0], replies=len(chunk)))
                subscribed ^= names
            for request in requests:
                session.listen(request)
            await asyncio.gather(*(request.answer for request in requests))

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(TICK, self._tick)
        now = loop.time()
        was_late = now - self._ticked > 1
        self._ticked = now
        if was_late:
            # This process was kept from reading: what seems overdue may be there already.
            return
        while self._waiting and self._waiting[0].deadline <= now:
            self._waiting.popleft().fail(
                f"Expected Redis at {self._target.where} to come back within {ANSWER_TIMEOUT:g} s, "
                f"but it did not: {self._trouble}"
            )
        if self._session is not None and now - self._pinged >= PING_INTERVAL:
            self._pinged = now
            self._ping(self._session)
        for link in self._links:
            link.check(now)

    def _ping(self, session: Session) -> None:
        def check(answer: asyncio.Future[Any]) -> None:
            # A user who may not ask for it does not get to know; but that the server is there, we know.
            if not answer.cancelled() and not answer.exception() and answer.result()[0] != b"master":
                session.links[0].close("it is no primary any more")

        for links, command, done in (
            (session.listeners, "PING", _ignore),
            (session.commands, "ROLE", check),
        ):
            for link in links:
                request = Request((command,), deadline=self._deadline())
                request.answer.add_done_callback(done)
                link.send(request)


def _arguments(history: History | None) -> tuple[str, str]:
    """Size, and ttl in milliseconds, as the scripts take them."""
    if history is None:
        return "", ""
    return str(min(history.size, MAX_OFFSET)), str(max(1, int(min(history.ttl, MAX_TTL) * 1000)))


def _position(text: bytes) -> Position:
    offset, epoch = text.split(b" ")
    return Position(int(offset), epoch.decode())


def _entry(entry: tuple[bytes, Sequence[bytes]], epoch: str) -> Publication:
    """The publication in an entry of the log.

    :raises ValueError: it is none.
    :raises InvalidData: likewise.
    """
    entry_id, (_, time, _, packed) = entry
    return unpack(packed).at(Position(int(entry_id.partition(b"-")[0]), epoch), float(time))


def _announced(payload: bytes) -> Publication:
    """The publication in an announcement: "offset epoch time publication".

    :raises ValueError: it is none.
    :raises InvalidData: likewise.
    """
    offset, epoch, time, packed = payload.split(b" ", 3)
    return unpack(packed).at(Position(int(offset), epoch.decode()), float(time))


async def _prepare(commands: Link) -> None:
    """Tell a server our scripts.

    :raises EngineUnavailable: it is a replica. What is published there without history would be taken, but
        reach nobody elsewhere.
    """
    for script in SCRIPTS:
        await commands.ask("SCRIPT", "LOAD", script.source)
    try:
        role, *_ = await commands.ask("ROLE")
    except EngineUnavailable:
        if commands.is_closed:
            raise
        # The user may not ask.
        return
    if role != b"master":
        raise EngineUnavailable(
            f"Expected a primary at {commands.where}, but got a replica ({role.decode()})."
        )


def _chunks(names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(names), SUBSCRIBE_CHUNK):
        yield names[start : start + SUBSCRIBE_CHUNK]


def _ignore_message(name: bytes, payload: bytes) -> None:
    """Nothing was subscribed to."""


def _ignore_request(request: Request) -> None:
    """Nothing was asked for that moves."""


def _ignore(answer: asyncio.Future[Any]) -> None:
    """A failure that nobody waits for is not worth a warning."""
    answer.cancelled() or answer.exception()


async def _close(session: Session, reason: str) -> None:
    for link in session.links:
        link.close(reason)
    for link in session.links:
        await link.wait_closed()
