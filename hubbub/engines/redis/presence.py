"""Who is in which channel, as it lies in Redis.

* A sorted set of leases; and for each lease one of the channels in which it may have entries
  (``lua/renew.lua``).
* For each channel a hash of who is there, and under which lease (``lua/enter.lua``).

In a cluster they lie on different nodes, and what takes several steps may stop after any of them. So

* to enter somebody, the lease is renewed and the channel noted; then the entry is written. There is no entry
  in a channel that is not noted.
* to remove a lease, it is claimed, from when on it cannot be renewed; then the entries go, then the notes,
  and the lease comes last. If whoever does that dies, another one claims it and goes on.

Entries under a lease that nobody knows do not count: the server has lost the lease, or a node wrote them that
had slept until its lease was gone. Whoever reads the channel leaves them out, and removes them.

A server that was restarted, or a replica that took over, may have lost the last of what was acknowledged, and
does not know what. So a lease is good for one *generation* of servers only.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from hubbub.engines.base import PresenceChange
from hubbub.engines.redis.chunks import chunks
from hubbub.engines.redis.connection import ANSWER_TIMEOUT
from hubbub.engines.redis.keys import Keys
from hubbub.engines.redis.scripts import CLAIM, CLEAR, ENTER, FORGET, RENEW
from hubbub.engines.redis.supervisor import Supervisor
from hubbub.exceptions import EngineUnavailable

#: Seconds that what lies there lives on for after it was used, and after which a channel that nobody enters
#: or leaves is made to live on. In between is time for many tries.
KEEP = 24 * 3600.0
REFRESH = 6 * 3600.0

#: Entries or channels in one script, so that it does not hold up others for more than a few milliseconds.
CHUNK = 500

#: Changes that are on their way at the same time, so that a node that enters everybody again does not hold up
#: its own event loop.
BATCH = 1000

#: Seconds that one node has for the removal of a lease before another one goes on with it.
TURN = 2 * ANSWER_TIMEOUT


class Presence:
    """What an engine keeps in Redis about who is where.

    :param keys: what things are called there.
    :param supervisor: by whom the scripts are run.
    """

    def __init__(self, keys: Keys, supervisor: Supervisor) -> None:
        self._keys = keys
        self._supervisor = supervisor
        # Updates are made one after another, for each takes several steps.
        self._turn = asyncio.Lock()
        # Lease -> the supervisor's generation when it was begun.
        self._begun: dict[str, int] = {}

    async def update(self, lease: str, ttl: float, changes: Sequence[PresenceChange], begin: bool) -> bool:
        """See :meth:`~hubbub.engines.base.Engine.update_presence`."""
        # Channel -> connection -> its data. The last change is what counts.
        wanted: defaultdict[str, dict[str, bytes | None]] = defaultdict(dict)
        for channel, connection, data in changes:
            wanted[channel][connection] = data
        entered = [
            channel
            for channel, entries in wanted.items()
            if any(data is not None for data in entries.values())
        ]
        async with self._in_turn():
            if begin:
                self._begun[lease] = self._supervisor.generation
            elif self._begun.get(lease) != self._supervisor.generation:
                # Some of what is under it may be lost, or back although it had left. Who is entered again
                # moves to a new lease; what remains lapses with this one.
                self._begun.pop(lease, None)
                return False
            old = await self._renew(lease, ttl, entered, begin)
            if old is None:
                del self._begun[lease]
                return False
            for channel in old:
                # Also without a change, its entries are made to live on.
                wanted.setdefault(channel, {})
            vacated = await self._enter(lease, wanted)
            for chunk in chunks(vacated, CHUNK):
                await self._forget(lease, chunk)
        return True

    async def expire(self, grace: float) -> Sequence[PresenceChange]:
        """See :meth:`~hubbub.engines.base.Engine.expire_presence`."""
        removed: list[PresenceChange] = []
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                claimed = await self._supervisor.run(CLAIM, [self._keys.leases], _ms(grace), _ms(TURN))
                for lease in claimed:
                    await self._remove(lease.decode(), removed)
        except (TimeoutError, EngineUnavailable) as exc:
            # What is gone is gone, and is told by nobody else. The rest is for whoever comes later.
            if not removed:
                trouble = str(exc) or f"no answer within {ANSWER_TIMEOUT:g} s"
                raise EngineUnavailable(f"Expected to remove lapsed leases, but got: {trouble}") from exc
        return removed

    async def read(self, channel: str) -> Mapping[str, bytes]:
        """See :meth:`~hubbub.engines.base.Engine.presence`."""
        entries: defaultdict[bytes, dict[str, bytes]] = defaultdict(dict)
        flat = await self._supervisor.ask("HGETALL", self._keys.presence(channel))
        for field, entry in zip(flat[::2], flat[1::2], strict=True):
            if field.startswith(b"="):
                lease, _, data = entry.partition(b"\0")
                entries[lease][field[1:].decode()] = data
        if not entries:
            return {}
        # Not before: a lease is there before there are entries under it.
        known = set(await self._supervisor.ask("ZRANGE", self._keys.leases, 0, -1))
        for lease in entries.keys() - known:
            del entries[lease]
            with suppress(EngineUnavailable):
                await self._clear(channel, lease.decode(), [])
        return {connection: data for each in entries.values() for connection, data in each.items()}

    # Steps

    async def _renew(
        self, lease: str, ttl: float, entered: Sequence[str], begin: bool
    ) -> Sequence[str] | None:
        """Renew the lease, and note the channels. Returns some whose entries are to be made to live on, or
        ``None`` if there is no such lease."""
        old: list[str] = []
        for chunk in chunks(entered, CHUNK) if entered else [()]:
            answer = await self._supervisor.run(
                RENEW,
                [self._keys.leases, self._keys.lease(lease)],
                lease,
                _ms(ttl),
                "1" if begin else "",
                _ms(KEEP + ttl),
                _ms(REFRESH),
                CHUNK,
                *chunk,
            )
            if answer is None:
                return None
            old += [channel.decode() for channel in answer]
        return old

    async def _enter(self, lease: str, wanted: Mapping[str, Mapping[str, bytes | None]]) -> Sequence[str]:
        """Enter and remove entries. Returns the channels in which there are none under the lease now."""
        under = lease.encode() + b"\0"
        is_occupied: dict[str, bool] = {}
        answers: list[tuple[str, asyncio.Future[Any]]] = []
        unanswered = 0
        for channel, entries in wanted.items():
            key = self._keys.presence(channel)
            for chunk in chunks(list(entries.items()), CHUNK) if entries else [()]:
                arguments: list[bytes | str] = []
                for connection, data in chunk:
                    arguments += (connection, b"" if data is None else under + data)
                answers.append((channel, self._supervisor.run(ENTER, [key], lease, _ms(KEEP), *arguments)))
                unanswered += max(len(chunk), 1)
                if unanswered >= BATCH:
                    is_occupied |= await _answered(answers)
                    answers.clear()
                    unanswered = 0
        is_occupied |= await _answered(answers)
        return [channel for channel, is_so in is_occupied.items() if not is_so]

    async def _forget(self, lease: str, channels: Sequence[str]) -> bool:
        """Forget that there may be entries under the lease in ``channels``. Returns whether there are no
        others; a lease that was claimed is forgotten then."""
        keys = [self._keys.leases, self._keys.lease(lease)]
        return bool(await self._supervisor.run(FORGET, keys, lease, *channels))

    async def _remove(self, lease: str, removed: list[PresenceChange]) -> None:
        """Remove a lease that was claimed, with everything under it, which is added to ``removed``."""
        is_left = True
        while is_left:
            noted = await self._supervisor.ask("ZRANGE", self._keys.lease(lease), 0, CHUNK - 1)
            channels = [channel.decode() for channel in noted]
            # Also if one fails, the others are waited for: what they have removed is to be told.
            for failure in await asyncio.gather(
                *(self._clear(channel, lease, removed) for channel in channels), return_exceptions=True
            ):
                if failure is not None:
                    raise failure
            is_left = not await self._forget(lease, channels)

    async def _clear(self, channel: str, lease: str, removed: list[PresenceChange]) -> None:
        """Remove the entries of ``channel`` under ``lease``, and add them to ``removed``."""
        cursor = b"0"
        while True:
            cursor, connections = await self._supervisor.run(
                CLEAR, [self._keys.presence(channel)], lease, cursor, CHUNK
            )
            removed += [PresenceChange(channel, each.decode(), None) for each in connections]
            if cursor == b"0":
                return

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        """After the updates that were asked for earlier.

        :raises EngineUnavailable: they take too long.
        """
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._turn.acquire()
        except TimeoutError:
            raise EngineUnavailable(
                f"Expected earlier changes of presence to be made within {ANSWER_TIMEOUT:g} s, "
                "but they were not."
            ) from None
        try:
            yield
        finally:
            self._turn.release()


async def _answered(answers: Sequence[tuple[str, asyncio.Future[Any]]]) -> dict[str, bool]:
    """What the scripts answered for each channel; what they answered last, if there are several."""
    answered = await asyncio.gather(*(answer for _, answer in answers))
    return {channel: bool(each) for (channel, _), each in zip(answers, answered, strict=True)}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
