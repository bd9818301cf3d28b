"""The engine for ``redis://`` and its relatives: what hubs ask of it, as scripts and subscriptions."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from secrets import token_hex
from typing import ClassVar

from redis.crc import key_slot

from hubbub.core.history import History, HistoryPage
from hubbub.core.publication import START, Position, Publication, pack, unpack
from hubbub.engines.base import IDEMPOTENCY_WINDOW, Diagnosis, Engine, PresenceChange, Sink, Top, hand_over
from hubbub.engines.redis.address import parse_url
from hubbub.engines.redis.chunks import chunks
from hubbub.engines.redis.connections import Session
from hubbub.engines.redis.keys import Keys
from hubbub.engines.redis.known import Known
from hubbub.engines.redis.presence import Presence
from hubbub.engines.redis.scripts import BEGIN, DECLARE, PUBLISH, READ, REMOVE, TOPS
from hubbub.engines.redis.supervisor import Supervisor
from hubbub.exceptions import EngineUnavailable, InvalidData

logger = logging.getLogger("hubbub.engines.redis")

#: Redis counts in 64 bits, Lua in doubles. Nobody keeps more, or for longer (some 30 years, in seconds).
MAX_OFFSET = 2**53
MAX_TTL = 1e9

#: Channels that are asked about at a time.
CHUNK = 500


class RedisEngine(Engine):
    """One Redis or Valkey server, or whichever of several is the primary, or a cluster.

    Every request is answered within ``ANSWER_TIMEOUT`` seconds. While the server is away, it waits that long
    for it to come back; then, and if the connection breaks while an answer is outstanding, calls raise
    :class:`~hubbub.exceptions.EngineUnavailable`. In the latter case a publication may have been accepted.

    Positions and idempotency keys are as durable as the server is set up to make them.
    """

    across_processes: ClassVar[bool] = True

    def __init__(self, url: str, namespace: str = "hubbub") -> None:
        super().__init__(url, namespace)
        target = parse_url(url)
        # A cluster's own publish/subscribe does not leave the node of the channel.
        self._is_cluster = bool(target.nodes)
        self._announce = "SPUBLISH" if self._is_cluster else "PUBLISH"
        self._keys = Keys(namespace, target.options["db"])
        self._supervisor = Supervisor(target, self._on_payload, self._declare)
        self._presence = Presence(self._keys, self._supervisor)
        self._sink: Sink | None = None
        # Of the channels that are subscribed to.
        self._known: dict[str, Known] = {}
        # Channels in which something came that is no publication.
        self._foreign: set[str] = set()

    async def start(self, sink: Sink) -> None:
        await self._supervisor.start(sink)
        self._sink = sink

    async def stop(self) -> None:
        self._sink = None
        await self._supervisor.stop()
        self._known.clear()
        self._foreign.clear()

    # Streams

    async def publish(
        self,
        publication: Publication,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Position:
        keys = self._stream(publication.channel)
        if idempotency_key is not None:
            keys.append(self._keys.once(publication.channel, idempotency_key))
        answer = await self._supervisor.run(
            PUBLISH,
            keys,
            token_hex(4),
            *_arguments(history),
            self._announce,
            self._keys.topic(publication.channel),
            pack(publication),
            publication.id,
            int(IDEMPOTENCY_WINDOW * 1000),
        )
        position = _position(answer)
        if idempotency_key is None:
            # With a key, it may be the position of another publication.
            self._learn(publication.channel, *position, publication.id)
        return position

    async def subscribe(self, channel: str, history: History | None = None) -> Top:
        topic = self._keys.topic(channel)
        is_new = channel not in self._known
        known = self._known.setdefault(channel, Known(history))
        try:
            await self._supervisor.subscribe(topic, channel)
            known.history = history or known.history
            top, _ = await self._read(channel, history, limit=0)
            return top
        except BaseException:
            if is_new:
                self._known.pop(channel, None)
                self._supervisor.unsubscribe(topic)
            raise

    async def unsubscribe(self, channel: str) -> None:
        self._supervisor.check_started()
        self._known.pop(channel, None)
        self._foreign.discard(channel)
        answer = self._supervisor.unsubscribe(self._keys.topic(channel))
        if answer is not None:
            await answer

    async def history(
        self, channel: str, since: Position | None = None, limit: int | None = None, reverse: bool = False
    ) -> HistoryPage:
        top, publications = await self._read(channel, None, since, limit, reverse)
        return HistoryPage(publications, top.position)

    async def tops(self, channels: Sequence[str]) -> Sequence[Top]:
        tops: list[Top] = []
        for some in chunks(channels, CHUNK):
            # One script can only be asked about what lies in one slot of a cluster.
            groups: defaultdict[int, list[str]] = defaultdict(list)
            for channel in some:
                groups[key_slot(self._keys.topic(channel)) if self._is_cluster else 0].append(channel)
            answers = await asyncio.gather(
                *(self._supervisor.run(TOPS, [*map(self._keys.meta, group)]) for group in groups.values())
            )
            found = dict(zip(chain(*groups.values()), map(_top, chain(*answers)), strict=True))
            for channel, top in found.items():
                self._learn(channel, *top.position, top.id)
            tops += [found[channel] for channel in some]
        return tops

    async def remove_history(self, channel: str) -> None:
        await self._supervisor.run(REMOVE, self._stream(channel), token_hex(4))

    async def renew_epoch(self, channel: str, epoch: str) -> None:
        # In one step, and without forgetting anything: several nodes may notice at once.
        await self._supervisor.run(BEGIN, self._stream(channel), token_hex(4), epoch)

    # Presence

    async def update_presence(
        self, lease: str, ttl: float, changes: Sequence[PresenceChange] = (), begin: bool = False
    ) -> bool:
        return await self._presence.update(lease, min(ttl, MAX_TTL), changes, begin)

    async def expire_presence(self, grace: float) -> Sequence[PresenceChange]:
        return await self._presence.expire(min(grace, MAX_TTL))

    async def presence(self, channel: str) -> Mapping[str, bytes]:
        return await self._presence.read(channel)

    async def inspect(self) -> Sequence[Diagnosis]:
        return await self._supervisor.inspect()

    # Inside

    def _stream(self, channel: str) -> list[str]:
        """The keys that the scripts of streams take."""
        return [self._keys.meta(channel), self._keys.log(channel)]

    async def _read(
        self,
        channel: str,
        history: History | None,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> tuple[Top, Sequence[Publication]]:
        first, last = ("+", "-") if reverse else ("-", "+")
        expected = b"*"
        if since is not None:
            offset = min(since.offset - 1 if reverse else since.offset + 1, MAX_OFFSET)
            first = str(max(offset, 0))
            if since != START:
                # It may come from a client. What cannot be encoded is an epoch that never was.
                expected = since.epoch.encode(errors="replace")
            if reverse and offset < 0:
                limit = 0
        answer, entries = await self._supervisor.run(
            READ,
            self._stream(channel),
            token_hex(4),
            *_arguments(history),
            expected,
            first,
            last,
            "" if limit is None else limit,
            "XREVRANGE" if reverse else "XRANGE",
        )
        top = _top(answer)
        self._learn(channel, *top.position, top.id)
        publications = []
        for entry in entries:
            try:
                publications.append(_entry(entry, top.position.epoch))
            except (InvalidData, ValueError) as exc:
                # What is left has a gap then, which a feed notices.
                self._ignore_foreign(channel, exc)
        return top, publications

    def _learn(self, channel: str, offset: int, epoch: str, publication_id: str) -> None:
        known = self._known.get(channel)
        if known is not None:
            known.learn(offset, epoch, publication_id)

    async def _declare(self, session: Session) -> None:
        """Declare histories that the servers have lost, and compare the others with what is known, before the
        node and its publishers go on.

        :raises EngineUnavailable: the session has ended.
        """
        # A channel that has no stream, as far as is known, and is to have none, needs nothing.
        all_known = [(channel, known) for channel, known in self._known.items() if known.is_stream]
        for some in chunks(all_known, CHUNK):
            answers = await asyncio.gather(
                *(
                    session.run(
                        DECLARE,
                        self._stream(channel),
                        token_hex(4),
                        *_arguments(known.history),
                        known.epoch,
                        known.offset,
                        known.id,
                    )
                    for channel, known in some
                ),
                return_exceptions=True,
            )
            for (channel, known), answer in zip(some, answers, strict=True):
                if not isinstance(answer, BaseException):
                    top = _top(answer)
                    known.learn(*top.position, top.id)
                elif session.trouble or not isinstance(answer, EngineUnavailable):
                    raise answer
                else:
                    # Memory is short, most likely. The stream gets a new epoch when it is read.
                    logger.warning("Could not compare %r with what was known of it: %s", channel, answer)

    def _on_payload(self, channel: str, payload: bytes) -> None:
        if self._sink is None:
            return
        try:
            publication = _announced(payload)
            if publication.channel != channel:
                raise InvalidData(f"Expected a publication to {channel!r}, but got {publication.channel!r}.")
        except (InvalidData, ValueError) as exc:
            self._ignore_foreign(channel, exc)
            return
        if publication.offset:
            self._learn(channel, publication.offset, publication.epoch, publication.id)
        hand_over(self._sink, publication)

    def _ignore_foreign(self, channel: str, exc: Exception) -> None:
        if channel not in self._foreign:
            self._foreign.add(channel)
            logger.warning("Ignored what is no publication in %r, this time and any other: %s", channel, exc)


def _arguments(history: History | None) -> tuple[str, str]:
    """Size, and ttl in milliseconds, as the scripts take them."""
    if history is None:
        return "", ""
    return str(min(history.size, MAX_OFFSET)), str(max(1, int(min(history.ttl, MAX_TTL) * 1000)))


def _top(text: bytes) -> Top:
    """What the scripts say of where a stream stands: "offset epoch id"."""
    offset, epoch, publication_id = text.split(b" ", 2)
    return Top(Position(int(offset), epoch.decode()), publication_id.decode())


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
