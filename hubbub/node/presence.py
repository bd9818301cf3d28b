"""Who is in channels through this node, kept known to all the others.

Everybody here is entered in the engine under one *lease*, which is renewed as long as this process lives.
When it is killed, the lease lapses, and whichever node looks next removes it, with all that is under it. So
nobody stays for ever, and however many clients there are, it takes one small request now and then.

An outage is nobody's leaving. While the engine is away, no lease can be renewed; so a node that has just
come back gives the others time to come back as well before it removes anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from secrets import token_hex
from typing import TypeAlias

from msgspec import DecodeError, json, msgpack

from hubbub.core.publication import INTERNAL, Publication, encode_json, publication_ids
from hubbub.engines.base import Engine, PresenceChange
from hubbub.engines.reconnect import Backoff
from hubbub.exceptions import EngineUnavailable, HubNotRunning, InvalidData
from hubbub.types import PresenceEntry

logger = logging.getLogger("hubbub.node.presence")

#: The lease lasts this part of the time within which those of a killed process are to have left; the rest is
#: for others to notice.
LEASE = 0.8

#: Renewals of the lease in that time.
RENEWALS = 10

#: Seconds that a node has had no trouble with the engine before it removes the leases of others, or the whole
#: time if that is less.
SETTLED = 10.0

#: Changes that the engine is given at once.
CHUNK = 1000

#: Seconds for taking leave when the node stops.
GOODBYE = 2.0

#: Bytes of JSON that are told about somebody.
MAX_MEMBER = 4096

#: Connections, each with who has come, or with ``None`` if it has left.
News: TypeAlias = list[tuple[str, PresenceEntry | None]]

_encode_news = msgpack.Encoder().encode
_decode_news = msgpack.Decoder(list[tuple[str, bytes | None]]).decode
_decode_member = json.Decoder(PresenceEntry).decode


def companion(channel: str) -> str:
    """The channel in which nodes tell one another who comes to ``channel`` and who leaves it."""
    return f"{INTERNAL}presence:{channel}"


def encode_member(member: PresenceEntry) -> bytes:
    """
    :raises InvalidData: ``member.info`` cannot be written as JSON, or is too long.
    """
    data = encode_json(member)
    if len(data) > MAX_MEMBER:
        raise InvalidData(
            f"Expected at most {MAX_MEMBER} bytes of JSON about somebody who is present, but got {len(data)}."
        )
    return data


def decode_member(data: bytes) -> PresenceEntry:
    """
    :raises InvalidData: something else writes where Hubbub reads.
    """
    try:
        return _decode_member(data)
    except DecodeError as exc:
        raise InvalidData(f"Expected somebody who is present, but got {data[:64]!r}: {exc}.") from exc


def decode_members(channel: str, entries: Mapping[str, bytes]) -> dict[str, PresenceEntry]:
    """Who is in ``channel``, by connection. What something else has entered there is left out."""
    members: dict[str, PresenceEntry] = {}
    for connection, data in entries.items():
        try:
            members[connection] = decode_member(data)
        except InvalidData as exc:
            logger.warning("Ignored somebody in %r: %s", channel, exc)
    return members


def decode_news(packed: bytes) -> News:
    """What was told in a companion channel. Nothing at all means: look for yourselves.

    :raises InvalidData: something else writes where Hubbub reads.
    """
    try:
        news = _decode_news(packed)
    except DecodeError as exc:
        raise InvalidData(f"Expected news of presence, but got {packed[:64]!r}: {exc}.") from exc
    return [(connection, None if data is None else decode_member(data)) for connection, data in news]


class PresenceTracker:
    """Who is in channels through this node.

    :param engine: where it is entered.
    :param ttl: seconds within which those of a killed process are to have left.
    """

    def __init__(self, engine: Engine, ttl: float) -> None:
        self._engine = engine
        self._ttl = ttl
        self._ids = publication_ids()
        #: Why the engine could not be told the last time; empty if it could.
        self.trouble = ""
        # Everybody: channel and connection -> what is told about it.
        self._entries: dict[tuple[str, str], bytes] = {}
        # What the engine has yet to be told, and who waits for that.
        self._changes: dict[tuple[str, str], bytes | None] = {}
        self._waiting: dict[tuple[str, str], list[asyncio.Future[None]]] = {}
        # Of whom the engine may know: it was told, or did not answer. Only they have to be removed there.
        self._known: set[tuple[str, str]] = set()
        # What the other nodes have yet to be told; and where they are to look for themselves.
        self._untold: dict[str, list[tuple[str, bytes | None]]] = {}
        self._lapsed: set[str] = set()
        self._lease = token_hex(8)
        # Whether the engine is known to have the lease.
        self._has_begun = False
        # By a clock that goes on while the machine sleeps: that is trouble too.
        self._untroubled_since = self._last_round = time.time()
        # By the event loop's clock.
        self._next_renewal = 0.0
        self._wake = asyncio.Event()
        # Set when trying again may work.
        self._hope = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._has_stopped = False

    def start(self) -> None:
        """Begin to look after leases: ours, and those that have lapsed."""
        if self._task is None and not self._has_stopped:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Take leave for everybody, if the engine lets us, and begin nothing more."""
        self._has_stopped = True
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        try:
            async with asyncio.timeout(GOODBYE):
                await self._update()
                if self._has_begun:
                    await self._engine.update_presence(self._lease, 0)
                await self._tell()
        except (TimeoutError, EngineUnavailable) as exc:
            logger.warning("Could not take leave of the engine: who was here seems so for a while. (%s)", exc)
        finally:
            self._release(list(self._waiting))

    async def enter(self, channel: str, connection: str, data: bytes) -> bool:
        """Say that somebody is here. Returns when others can see it; or when the engine cannot be told now:
        it will be, as soon as it is back.

        :param data: from :func:`encode_member`.
        :return: ``False`` if the connection has left meanwhile, or has entered as somebody else.
        :raises HubNotRunning: it has stopped.
        """
        if self._has_stopped:
            raise HubNotRunning(f"The hub has stopped before {channel!r} could be told who comes.")
        key = (channel, connection)
        self._entries[key] = self._changes[key] = data
        told = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(told)
        self._wake.set()
        self.start()
        await told
        return self._entries.get(key) is data

    def leave(self, channel: str, connection: str) -> None:
        """Say that somebody has left, if they were here."""
        key = (channel, connection)
        if self._entries.pop(key, None) is None:
            return
        if key in self._known:
            self._changes[key] = None
            self._wake.set()
        else:
            # While the engine is away, clients come and go: there is nothing to keep of them.
            self._changes.pop(key, None)
            self._release([key])

    def has_trouble(self) -> None:
        """The engine is away, or has just come back."""
        self._untroubled_since = time.time()
        self._next_renewal = 0.0
        self._wake.set()
        self._hope.set()

    @property
    def is_settled(self) -> bool:
        """Whether the engine has been there for so long that all nodes that live have renewed their leases,
        and entered again what an engine that had lost its data did not have."""
        return time.time() - self._untroubled_since >= min(self._ttl, SETTLED)

    # Inside

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._next_renewal):
                    await self._wake.wait()
            self._wake.clear()
            self._hope.clear()
            self._notice_sleep()
            try:
                await self._round()
                backoff.reset()
                self.trouble = ""
            except Exception as exc:
                # What else it may be can say something about connections.
                reason = str(exc) if isinstance(exc, EngineUnavailable) else type(exc).__name__
                self.trouble = f"Could not update presence: {reason}"
                if isinstance(exc, EngineUnavailable):
                    logger.debug("Could not tell who is here: %s", exc)
                else:
                    # Whatever it is: nobody else would renew the lease.
                    logger.exception("Could not tell who is here; it is tried again.")
                self._untroubled_since = time.time()
                self._release(list(self._waiting))
                await backoff.wait(self._hope)

    async def _round(self) -> None:
        now = asyncio.get_running_loop().time()
        is_due = now >= self._next_renewal
        await self._update(renew=is_due)
        await self._tell()
        if is_due:
            self._next_renewal = now + self._ttl / RENEWALS
            await self._expire()
            await self._tell()

    def _notice_sleep(self) -> None:
        """A machine that was asleep wakes to find all leases lapsed. And when its clock is set back, it does
        not take hours until all is as it was."""
        now = time.time()
        if not 0 <= now - self._last_round <= self._ttl / 2:
            self._untroubled_since = now
        self._last_round = now

    async def _update(self, *, renew: bool = False) -> None:
        """Tell the engine what has changed until now, and renew the lease. What changes meanwhile is for the
        next round: this one would never end where connections come and go all the time."""
        keys = list(self._changes) if self._has_begun else self._begin()
        # There is no lease to renew as long as it has not begun, which it does with the first entry.
        renew = renew and self._has_begun
        while keys or renew:
            chunk = {key: self._changes[key] for key in keys[:CHUNK]}
            changes = [PresenceChange(*key, data) for key, data in chunk.items()]
            self._known.update(chunk)
            # All of it stays to be done until it is known to be done: it does no harm to do it twice.
            is_there = await self._engine.update_presence(
                self._lease, self._ttl * LEASE, changes, begin=not self._has_begun
            )
            if not is_there:
                logger.info("The engine has this node's lease no more: it is told again who is here.")
                self._lease = token_hex(8)
                self._has_begun = renew = False
                keys = self._begin()
                continue
            del keys[:CHUNK]
            renew = False
            self._has_begun = True
            for key, data in chunk.items():
                channel, connection = key
                self._untold.setdefault(channel, []).append((connection, data))
                if data is None and key not in self._entries:
                    self._known.discard(key)
                # It may have changed again meanwhile.
                if self._changes.get(key) is data:
                    del self._changes[key]
                    self._release([key])

    def _begin(self) -> list[tuple[str, str]]:
        """Have everybody entered, under a new lease."""
        left = {key: None for key, data in self._changes.items() if data is None}
        self._changes = left | self._entries
        return list(self._changes)

    def _release(self, keys: Iterable[tuple[str, str]]) -> None:
        """Let those go on who wait for the engine to be told of ``keys``."""
        for key in keys:
            for each in self._waiting.pop(key, ()):
                if not each.done():
                    each.set_result(None)

    async def _expire(self) -> None:
        # Who has been gone for twice the time was not merely kept from renewing.
        grace = 0.0 if self.is_settled else self._ttl
        removed = await self._engine.expire_presence(grace)
        if removed:
            logger.info("%d who were present are gone with their process.", len(removed))
        self._lapsed.update(change.channel for change in removed)

    async def _tell(self) -> None:
        """Tell the other nodes what the engine has been told."""
        untold, self._untold = self._untold, {}
        lapsed, self._lapsed = self._lapsed, set()
        news = [*untold.items(), *((channel, ()) for channel in lapsed)]
        results = await asyncio.gather(
            *(
                self._engine.publish(
                    Publication(companion(channel), _encode_news(changes), "binary", id=next(self._ids))
                )
                for channel, changes in news
            ),
            return_exceptions=True,
        )
        failed = [exc for exc in results if isinstance(exc, BaseException)]
        for (channel, _), result in zip(news, results, strict=True):
            if isinstance(result, BaseException):
                # By the time it works again, it is easier to look.
                self._lapsed.add(channel)
        if failed:
            raise failed[0]
