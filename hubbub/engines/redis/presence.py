"""The presence entries of channels in Redis, and the leases that they are made under.

* All leases are in a sorted set. For each lease, another one has the channels that may have entries under it
  (``lua/renew.lua``).
* For each channel, a hash has its entries, each with its lease (``lua/enter.lua``).

In a cluster these keys are on different nodes. An operation of several steps may stop after any of them, so

* to make an entry, the lease is renewed and the channel is noted under it; then the entry is written. No
  channel has an entry that it is not noted for.
* to remove a lease, it is claimed, and cannot be renewed from then on; then the entries are removed, then the
  notes, and the lease at last. If the process that removes it crashes, another one claims it and continues.

Entries under a lease that does not exist do not count: the server has lost the lease, or the process was
suspended between the two steps until its lease was removed. Readers leave such entries out, and remove them.

A server that was restarted, or a replica that took over, may have lost the last changes that were
acknowledged, and does not report it. So a lease is only valid within one *generation* of servers.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from hubbub.engines.base import ANSWER_TIMEOUT, PresenceChange, batched
from hubbub.engines.redis.keys import Keys
from hubbub.engines.redis.scripts import CLAIM, CLEAR, ENTER, FORGET, RENEW
from hubbub.engines.redis.supervisor import Supervisor
from hubbub.exceptions import EngineUnavailable

#: Seconds after its last use until a key expires, and until a channel without changes has its key refreshed.
#: The difference leaves time for many attempts.
KEEP = 24 * 3600.0
REFRESH = 6 * 3600.0

#: Entries or channels in one script, so that it does not block the server for more than a few milliseconds.
SCRIPT_BATCH = 500

#: Changes that are sent before the first answers are waited for, so that a node which enters all its
#: connections again does not block its own event loop.
BATCH = 1000

#: Seconds that a process has for the removal of a lease before another one continues it.
TURN = 2 * ANSWER_TIMEOUT


class Presence:
    """The presence entries that an engine keeps in Redis.

    :param keys: the names of the keys.
    :param supervisor: runs the scripts.
    """

    def __init__(self, keys: Keys, supervisor: Supervisor) -> None:
        self._keys = keys
        self._supervisor = supervisor
        # Updates are made one after another, because each takes several steps.
        self._turn = asyncio.Lock()
        # Lease -> the supervisor's generation at its begin.
        self._begun: dict[str, int] = {}

    async def update(self, lease: str, ttl: float, changes: Sequence[PresenceChange], begin: bool) -> bool:
        """See :meth:`~hubbub.engines.base.Engine.update_presence`."""
        # Channel -> connection -> its data. Only the last change of a connection counts.
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
                # Entries under it may be lost, or may exist again after they were removed. The node enters
                # its connections under a new lease; the other entries lapse with this one.
                self._begun.pop(lease, None)
                return False
            old = await self._renew(lease, ttl, entered, begin)
            if old is None:
                del self._begun[lease]
                return False
            for channel in old:
                # Its key is refreshed, also without a change.
                wanted.setdefault(channel, {})
            vacated = await self._enter(lease, wanted)
            for batch in batched(vacated, SCRIPT_BATCH):
                await self._forget(lease, batch)
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
            # No other process reports the entries that this one has removed, so they are returned. The rest
            # is removed by a later call.
            if not removed:
                reason = str(exc) or f"There was no answer within {ANSWER_TIMEOUT:g} s."
                raise EngineUnavailable(f"Could not remove lapsed leases. {reason}") from exc
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
        # After the entries: a lease exists before there are entries under it.
        known = set(await self._supervisor.ask("ZRANGE", self._keys.leases, 0, -1))
        for lease in entries.keys() - known:
            del entries[lease]
            with suppress(EngineUnavailable):
                await self._clear(channel, lease.decode(), [])
        return {connection: data for each in entries.values() for connection, data in each.items()}

    # Internal: steps

    async def _renew(
        self, lease: str, ttl: float, entered: Sequence[str], begin: bool
    ) -> Sequence[str] | None:
        """Renew the lease, and note the channels that it is about to have entries in.

        :return: some channels whose keys are to be refreshed; ``None`` if the lease does not exist.
        """
        old: list[str] = []
        for batch in batched(entered, SCRIPT_BATCH) if entered else [()]:
            answer = await self._supervisor.run(
                RENEW,
                [self._keys.leases, self._keys.lease(lease)],
                lease,
                _ms(ttl),
                "1" if begin else "",
                _ms(KEEP + ttl),
                _ms(REFRESH),
                SCRIPT_BATCH,
                *batch,
            )
            if answer is None:
                return None
            old += [channel.decode() for channel in answer]
        return old

    async def _enter(self, lease: str, wanted: Mapping[str, Mapping[str, bytes | None]]) -> Sequence[str]:
        """Make and remove entries. Returns the channels that have no entries under the lease any more."""
        under = lease.encode() + b"\0"
        is_occupied: dict[str, bool] = {}
        answers: list[tuple[str, asyncio.Future[Any]]] = []
        unanswered = 0
        for channel, entries in wanted.items():
            key = self._keys.presence(channel)
            for batch in batched(list(entries.items()), SCRIPT_BATCH) if entries else [()]:
                arguments: list[bytes | str] = []
                for connection, data in batch:
                    arguments += (connection, b"" if data is None else under + data)
                answers.append((channel, self._supervisor.run(ENTER, [key], lease, _ms(KEEP), *arguments)))
                unanswered += max(len(batch), 1)
                if unanswered >= BATCH:
                    is_occupied |= await _answered(answers)
                    answers.clear()
                    unanswered = 0
        is_occupied |= await _answered(answers)
        return [channel for channel, has_entries in is_occupied.items() if not has_entries]

    async def _forget(self, lease: str, channels: Sequence[str]) -> bool:
        """Remove the notes of ``channels`` under the lease; and a lease that was claimed, with its last note.

        :return: whether the lease has no notes any more.
        """
        keys = [self._keys.leases, self._keys.lease(lease)]
        return bool(await self._supervisor.run(FORGET, keys, lease, *channels))

    async def _remove(self, lease: str, removed: list[PresenceChange]) -> None:
        """Remove a lease that was claimed, with all its entries, which are added to ``removed``."""
        is_left = True
        while is_left:
            noted = await self._supervisor.ask("ZRANGE", self._keys.lease(lease), 0, SCRIPT_BATCH - 1)
            channels = [channel.decode() for channel in noted]
            # If one fails, the others are waited for all the same: the entries that they remove are returned.
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
                CLEAR, [self._keys.presence(channel)], lease, cursor, SCRIPT_BATCH
            )
            removed += [PresenceChange(channel, each.decode(), None) for each in connections]
            if cursor == b"0":
                return

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        """Wait for the updates of earlier calls.

        :raises EngineUnavailable: they take too long.
        """
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._turn.acquire()
        except TimeoutError:
            raise EngineUnavailable(
                f"Could not update presence: earlier updates took longer than {ANSWER_TIMEOUT:g} s."
            ) from None
        try:
            yield
        finally:
            self._turn.release()


async def _answered(answers: Sequence[tuple[str, asyncio.Future[Any]]]) -> dict[str, bool]:
    """Wait for the answers, and return the last one for each channel."""
    answered = await asyncio.gather(*(answer for _, answer in answers))
    return {channel: bool(each) for (channel, _), each in zip(answers, answered, strict=True)}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
