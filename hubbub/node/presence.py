"""Presence: keeps the connections of a node entered in the engine, and sends changes to all other nodes.

All connections of a node are entered under one *lease*, which the node renews as long as it runs. When its
process is killed, the lease lapses. The next node that checks removes it, with all entries under it. So no
entry stays for ever, and however many connections there are, keeping them entered takes one small request now
and then.

During an outage of the engine no lease can be renewed. An outage must not make connections leave, so a node
that has just reconnected gives the others time to reconnect as well before it removes any lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from secrets import token_hex
from typing import TypeAlias

from msgspec import DecodeError, json, msgpack

from hubbub.core.publication import INTERNAL, Publication, encode_json, publication_ids
from hubbub.engines.base import Engine, PresenceChange
from hubbub.engines.reconnect import Backoff
from hubbub.exceptions import EngineUnavailable, HubNotRunning, InvalidData
from hubbub.node.clock import Clock, wait
from hubbub.types import PresenceEntry

logger = logging.getLogger(__name__)

#: Part of ``presence_ttl`` for which a lease lasts. The rest is for other nodes to notice that it has lapsed.
LEASE = 0.8

#: Renewals of the lease within ``presence_ttl``.
RENEWALS = 10

#: Seconds without an outage after which a node removes the leases of others; at most ``presence_ttl``.
SETTLE_TIME = 10.0

#: Changes in one request to the engine.
CHUNK = 1000

#: Seconds for removing all entries when the node stops.
STOP_TIMEOUT = 2.0

#: Bytes of JSON in one presence entry.
MAX_ENTRY = 4096

#: Connections, each with its entry, or with ``None`` if it left.
Diff: TypeAlias = list[tuple[str, PresenceEntry | None]]

_encode_diff = msgpack.Encoder().encode
_decode_diff = msgpack.Decoder(list[tuple[str, bytes | None]]).decode
_decode_entry = json.Decoder(PresenceEntry).decode


def presence_channel(channel: str) -> str:
    """Return the name of the channel in which nodes send diffs of the presence of ``channel``."""
    return f"{INTERNAL}presence:{channel}"


def encode_entry(entry: PresenceEntry) -> bytes:
    """Encode ``entry`` as JSON, for the engine and for other nodes.

    :raises InvalidData: ``entry.info`` cannot be written as JSON, or the entry has more than 4,096 bytes.
    """
    data = encode_json(entry)
    if len(data) > MAX_ENTRY:
        raise InvalidData(
            f"Expected a presence entry of at most {MAX_ENTRY} bytes of JSON, but got {len(data)}. Put less "
            "into info."
        )
    return data


def decode_entry(data: bytes) -> PresenceEntry:
    """Decode an entry that the engine or another node had.

    :raises InvalidData: ``data`` is not from :func:`encode_entry`: another program writes to the same keys.
    """
    try:
        return _decode_entry(data)
    except DecodeError as exc:
        raise InvalidData(f"Expected a presence entry as JSON, but got {data[:64]!r}: {exc}.") from exc


def decode_entries(channel: str, found: Mapping[str, bytes]) -> dict[str, PresenceEntry]:
    """Decode the entries of ``channel``, by connection, and leave out those of other programs."""
    entries: dict[str, PresenceEntry] = {}
    for connection, data in found.items():
        try:
            entries[connection] = decode_entry(data)
        except InvalidData as exc:
            logger.warning("Ignored a presence entry in %r: %s", channel, exc)
    return entries


def decode_diff(packed: bytes) -> Diff:
    """Decode a diff from a presence channel. An empty one asks every node to read the engine instead.

    :raises InvalidData: another program writes to the presence channel.
    """
    try:
        diff = _decode_diff(packed)
    except DecodeError as exc:
        raise InvalidData(f"Expected a presence diff, but got {packed[:64]!r}: {exc}.") from exc
    return [(connection, None if data is None else decode_entry(data)) for connection, data in diff]


class PresenceTracker:
    """Keeps the connections of this node present in their channels.

    :param engine: where they are entered.
    :param ttl: seconds after which the connections of a crashed process are removed.
    :param clock: by which the lease is renewed.
    :param wall_clock: seconds that also pass while the machine sleeps. It may be set back.
    """

    def __init__(
        self, engine: Engine, ttl: float, clock: Clock, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._ttl = ttl
        self._clock = clock
        self._wall_clock = wall_clock
        self._ids = publication_ids()
        #: Why the engine could not be updated the last time; empty if it could.
        self.error = ""
        # All tracked connections: channel and connection -> encoded entry.
        self._entries: dict[tuple[str, str], bytes] = {}
        # Changes that are still to be made in the engine, and the callers that wait for them.
        self._changes: dict[tuple[str, str], bytes | None] = {}
        self._waiting: dict[tuple[str, str], list[asyncio.Future[None]]] = {}
        # Connections that the engine may have: it was given them, or did not answer. Only these are removed
        # there.
        self._known: set[tuple[str, str]] = set()
        # Diffs that are still to be sent to other nodes; and channels that other nodes are to read
        # themselves.
        self._unsent: dict[str, list[tuple[str, bytes | None]]] = {}
        self._to_sync: set[str] = set()
        self._lease = token_hex(8)
        # Whether the engine is known to have the lease.
        self._has_begun = False
        # By the wall clock: a sleep of the machine is like an outage.
        self._connected_since = self._last_round = wall_clock()
        # By the node's clock.
        self._next_renewal = 0.0
        self._wake = asyncio.Event()
        # Set when another attempt may succeed.
        self._may_retry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._has_stopped = False

    # Lifecycle

    def start(self) -> None:
        """Begin to renew the lease of this node, and to remove leases that have lapsed."""
        if self._task is None and not self._has_stopped:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Remove all entries of this node if the engine can be reached, and begin nothing more."""
        self._has_stopped = True
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._update()
                if self._has_begun:
                    await self._engine.update_presence(self._lease, 0)
                await self._send_diffs()
        except (TimeoutError, EngineUnavailable) as exc:
            logger.warning(
                "Could not remove the presence entries of this node while it stopped (%s); other nodes "
                "remove them when its lease has lapsed.",
                exc,
            )
        finally:
            self._release(list(self._waiting))

    # Tracking

    async def track(self, channel: str, connection: str, data: bytes) -> bool:
        """Enter a connection as present.

        Returns when other nodes can read the entry; or when the engine cannot be reached now. Then the entry
        is made as soon as the engine is back.

        :param data: from :func:`encode_entry`.
        :return: ``False`` if the connection has been untracked meanwhile, or tracked with another entry.
        :raises HubNotRunning: the tracker has stopped.
        """
        if self._has_stopped:
            raise HubNotRunning(f"The hub stopped before a connection was entered as present in {channel!r}.")
        key = (channel, connection)
        self._entries[key] = self._changes[key] = data
        entered = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(entered)
        self._wake.set()
        self.start()
        await entered
        return self._entries.get(key) is data

    def untrack(self, channel: str, connection: str) -> None:
        """Remove a connection from presence, if it is tracked."""
        key = (channel, connection)
        if self._entries.pop(key, None) is None:
            return
        if key in self._known:
            self._changes[key] = None
            self._wake.set()
        else:
            # During an outage connections come and go: nothing is kept of those that the engine never had.
            self._changes.pop(key, None)
            self._release([key])

    # Outages

    def notice_outage(self) -> None:
        """Note that the engine was lost, or has just reconnected."""
        self._connected_since = self._wall_clock()
        self._next_renewal = 0.0
        self._wake.set()
        self._may_retry.set()

    @property
    def is_settled(self) -> bool:
        """Whether the engine has been connected for so long that its entries are complete.

        By then all running nodes have renewed their leases. If the engine had lost its data, they have
        entered their connections again.
        """
        return self._wall_clock() - self._connected_since >= min(self._ttl, SETTLE_TIME)

    # Internal

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            await wait(self._clock, self._wake, max(0.0, self._next_renewal - self._clock.time()))
            self._wake.clear()
            self._may_retry.clear()
            self._notice_sleep()
            try:
                await self._round()
                backoff.reset()
                self.error = ""
            except Exception as exc:
                # Another exception's message may contain data of connections.
                reason = str(exc) if isinstance(exc, EngineUnavailable) else type(exc).__name__
                self.error = f"Could not update presence: {reason}"
                if isinstance(exc, EngineUnavailable):
                    logger.debug("Could not update presence (%s); trying again.", exc)
                else:
                    # The task must not end: no other one would renew the lease.
                    logger.exception("Could not update presence; trying again.")
                self._connected_since = self._wall_clock()
                self._release(list(self._waiting))
                await backoff.wait(self._may_retry)

    async def _round(self) -> None:
        now = self._clock.time()
        is_due = now >= self._next_renewal
        await self._update(renew=is_due)
        await self._send_diffs()
        if is_due:
            self._next_renewal = now + self._ttl / RENEWALS
            await self._expire()
            await self._send_diffs()

    def _notice_sleep(self) -> None:
        """Treat a sleep of the machine as an outage: when it wakes, all leases have lapsed.

        The same for a wall clock that was set back, so that the node does not stay unsettled for hours.
        """
        now = self._wall_clock()
        if not 0 <= now - self._last_round <= self._ttl / 2:
            self._connected_since = now
        self._last_round = now

    async def _update(self, *, renew: bool = False) -> None:
        """Make the pending changes in the engine, and renew the lease.

        Changes that come meanwhile are left to the next round: otherwise a round would never end where
        connections come and go all the time.
        """
        keys = list(self._changes) if self._has_begun else self._begin()
        # There is no lease to renew before it has begun, with the first entry.
        renew = renew and self._has_begun
        while keys or renew:
            chunk = {key: self._changes[key] for key in keys[:CHUNK]}
            changes = [PresenceChange(*key, data) for key, data in chunk.items()]
            self._known.update(chunk)
            # A change stays in _changes until it is known to be made: making it twice does no harm.
            has_lease = await self._engine.update_presence(
                self._lease, self._ttl * LEASE, changes, begin=not self._has_begun
            )
            if not has_lease:
                logger.info(
                    "The engine has lost the presence lease of this node; entering all connections again."
                )
                self._lease = token_hex(8)
                self._has_begun = renew = False
                keys = self._begin()
                continue
            del keys[:CHUNK]
            renew = False
            self._has_begun = True
            for key, data in chunk.items():
                channel, connection = key
                self._unsent.setdefault(channel, []).append((connection, data))
                if data is None and key not in self._entries:
                    self._known.discard(key)
                # It may have changed again during the request.
                if self._changes.get(key) is data:
                    del self._changes[key]
                    self._release([key])

    def _begin(self) -> list[tuple[str, str]]:
        """Schedule all connections to be entered under a new lease."""
        left = {key: None for key, data in self._changes.items() if data is None}
        self._changes = left | self._entries
        return list(self._changes)

    def _release(self, keys: Iterable[tuple[str, str]]) -> None:
        """Let the callers continue that wait for ``keys``."""
        for key in keys:
            for entered in self._waiting.pop(key, ()):
                if not entered.done():
                    entered.set_result(None)

    async def _expire(self) -> None:
        # A lease that lapsed a whole ttl ago was not merely kept from being renewed by an outage.
        grace = 0.0 if self.is_settled else self._ttl
        removed = await self._engine.expire_presence(grace)
        if removed:
            logger.info("Removed %d connections of crashed processes from presence.", len(removed))
        self._to_sync.update(change.channel for change in removed)

    async def _send_diffs(self) -> None:
        """Send the changes that were made in the engine to the other nodes."""
        unsent, self._unsent = self._unsent, {}
        to_sync, self._to_sync = self._to_sync, set()
        diffs = [*unsent.items(), *((channel, ()) for channel in to_sync)]
        results = await asyncio.gather(
            *(
                self._engine.publish(
                    Publication(presence_channel(channel), _encode_diff(diff), "binary", id=next(self._ids))
                )
                for channel, diff in diffs
            ),
            return_exceptions=True,
        )
        failed = [exc for exc in results if isinstance(exc, BaseException)]
        for (channel, _), result in zip(diffs, results, strict=True):
            if isinstance(result, BaseException):
                # When publishing works again, reading the engine is simpler than keeping the diffs until
                # then.
                self._to_sync.add(channel)
        if failed:
            raise failed[0]
