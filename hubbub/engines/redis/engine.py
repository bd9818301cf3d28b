"""The engine for ``redis://`` and its relatives: publications and histories."""

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
from hubbub.engines.base import IDEMPOTENCY_WINDOW, Engine, PresenceChange, Sink, Top, batched, hand_over
from hubbub.engines.diagnostics import Diagnosis
from hubbub.engines.redis.address import parse_url
from hubbub.engines.redis.connections import Connections
from hubbub.engines.redis.keys import Keys
from hubbub.engines.redis.known import KnownStream
from hubbub.engines.redis.presence import Presence
from hubbub.engines.redis.scripts import BEGIN, DECLARE, PUBLISH, READ, REMOVE, TOPS
from hubbub.engines.redis.supervisor import Supervisor
from hubbub.exceptions import EngineUnavailable, InvalidData

logger = logging.getLogger(__name__)

#: The largest offset, and the longest ttl in seconds (some 30 years). Redis counts in 64 bits, but Lua in
#: doubles.
MAX_OFFSET = 2**53
MAX_TTL = 1e9

#: Channels whose streams are read or declared at a time.
BATCH = 500


class RedisEngine(Engine):
    """One Redis or Valkey server, the primary that sentinels know, or a cluster.

    ::

        hub = Hub("redis://:password@cache:6379/0")

    Every call ends within ``ANSWER_TIMEOUT`` seconds. During an outage, it waits that long for the
    reconnection, and then raises :class:`~hubbub.exceptions.EngineUnavailable`. It also does so if the
    connection breaks before the answer; in this case a publication may have been accepted.

    Positions and idempotency keys are as durable as the server is configured to make them.

    :param url: one of the URLs in :mod:`hubbub.engines.redis`.
    :param namespace: see :class:`~hubbub.engines.Engine`.
    :raises InvalidURL: the URL is of none of these kinds.
    """

    across_processes: ClassVar[bool] = True

    def __init__(self, url: str, namespace: str = "hubbub") -> None:
        super().__init__(url, namespace)
        address = parse_url(url)
        # The messages of SPUBLISH stay on the node of the channel; those of PUBLISH go to all nodes.
        self._is_cluster = bool(address.nodes)
        self._announce = "SPUBLISH" if self._is_cluster else "PUBLISH"
        self._keys = Keys(namespace, address.options["db"])
        self._supervisor = Supervisor(address, self._on_payload, self._declare, self._started)
        self._presence = Presence(self._keys, self._supervisor)
        # The streams of the channels that are subscribed to.
        self._known: dict[str, KnownStream] = {}
        # Channels in which something was received or read that is no publication.
        self._foreign: set[str] = set()

    # Lifecycle

    async def start(self, sink: Sink) -> None:
        if self._sink is not None:
            raise RuntimeError(
                "Expected start() to be called once before stop(), but got a second call. Call stop() first."
            )
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
        known = self._known.setdefault(channel, KnownStream(history))
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
        self._started()
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
        for batch in batched(channels, BATCH):
            # The keys of one script have to lie in one slot of a cluster.
            groups: defaultdict[int, list[str]] = defaultdict(list)
            for channel in batch:
                groups[key_slot(self._keys.topic(channel)) if self._is_cluster else 0].append(channel)
            answers = await asyncio.gather(
                *(self._supervisor.run(TOPS, [*map(self._keys.meta, group)]) for group in groups.values())
            )
            found = dict(zip(chain(*groups.values()), map(_top, chain(*answers)), strict=True))
            for channel, top in found.items():
                self._learn(channel, *top.position, top.id)
            tops += [found[channel] for channel in batch]
        return tops

    async def remove_history(self, channel: str) -> None:
        await self._supervisor.run(REMOVE, self._stream(channel), token_hex(4))

    async def renew_epoch(self, channel: str, epoch: str) -> None:
        # In one step, because several nodes may ask for it at once. No publication is removed.
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

    # Internal

    def _stream(self, channel: str) -> list[str]:
        """Return the keys that the scripts of streams take."""
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
                # A position may come from a client. No epoch has ever been one that cannot be encoded.
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
                # That leaves a gap, which the feed notices.
                self._ignore_foreign(channel, exc)
        return top, publications

    def _learn(self, channel: str, offset: int, epoch: str, publication_id: str) -> None:
        known = self._known.get(channel)
        if known is not None:
            known.learn(offset, epoch, publication_id)

    async def _declare(self, connections: Connections) -> None:
        """Declare the histories that the servers have lost, and compare the others with the known ones.

        The node and its publishers wait meanwhile.

        :raises EngineUnavailable: the connections are closed.
        """
        # A channel that has no stream, as far as is known, and is declared to have none, needs nothing.
        all_known = [(channel, known) for channel, known in self._known.items() if known.is_stream]
        for batch in batched(all_known, BATCH):
            answers = await asyncio.gather(
                *(
                    connections.run(
                        DECLARE,
                        self._stream(channel),
                        token_hex(4),
                        *_arguments(known.history),
                        known.epoch,
                        known.offset,
                        known.id,
                    )
                    for channel, known in batch
                ),
                return_exceptions=True,
            )
            for (channel, known), answer in zip(batch, answers, strict=True):
                if not isinstance(answer, BaseException):
                    top = _top(answer)
                    known.learn(*top.position, top.id)
                elif connections.is_closed or not isinstance(answer, EngineUnavailable):
                    raise answer
                else:
                    # The server is most likely out of memory. READ gives the stream a new epoch if needed.
                    logger.warning("Could not compare the history of %r after an outage: %s", channel, answer)

    def _on_payload(self, channel: str, payload: bytes) -> None:
        if self._sink is None:
            return
        try:
            publication = _announced(payload)
            if publication.channel != channel:
                raise InvalidData(f"it is a publication to {publication.channel!r}")
        except (InvalidData, ValueError) as exc:
            self._ignore_foreign(channel, exc)
            return
        if publication.offset:
            self._learn(channel, publication.offset, publication.epoch, publication.id)
        hand_over(self._sink, publication)

    def _ignore_foreign(self, channel: str, exc: Exception) -> None:
        if channel not in self._foreign:
            self._foreign.add(channel)
            logger.warning(
                "Ignored data in %r that is no publication (%s). From now on, such data in this channel is "
                "ignored without a message.",
                channel,
                exc,
            )


def _arguments(history: History | None) -> tuple[str, str]:
    """Return size, and ttl in milliseconds, as the scripts take them."""
    if history is None:
        return "", ""
    return str(min(history.size, MAX_OFFSET)), str(max(1, int(min(history.ttl, MAX_TTL) * 1000)))


def _top(text: bytes) -> Top:
    """Parse the end of a stream as the scripts return it: "offset epoch id"."""
    offset, epoch, publication_id = text.split(b" ", 2)
    return Top(Position(int(offset), epoch.decode()), publication_id.decode())


def _position(text: bytes) -> Position:
    offset, epoch = text.split(b" ")
    return Position(int(offset), epoch.decode())


def _entry(entry: tuple[bytes, Sequence[bytes]], epoch: str) -> Publication:
    """Return the publication in an entry of the log.

    :raises ValueError: the entry is no publication.
    :raises InvalidData: the entry is no publication.
    """
    entry_id, (_, time, _, packed) = entry
    return unpack(packed).at(Position(int(entry_id.partition(b"-")[0]), epoch), float(time))


def _announced(payload: bytes) -> Publication:
    """Return the publication in an announcement: "offset epoch time publication".

    :raises ValueError: the payload is no publication.
    :raises InvalidData: the payload is no publication.
    """
    offset, epoch, time, packed = payload.split(b" ", 3)
    return unpack(packed).at(Position(int(offset), epoch.decode()), float(time))
