"""The reader: finds new publications of subscribed channels in the file, of all processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from hubbub.core.history import History
from hubbub.core.publication import Publication, unpack
from hubbub.engines.sqlite import pruning
from hubbub.engines.sqlite.store import Store
from hubbub.exceptions import InvalidData

logger = logging.getLogger(__name__)

#: Publications examined at a time, and bytes read at a time; one publication may have more.
MAX_READ = 500
MAX_READ_BYTES = 1_048_576


@dataclass(slots=True)
class Subscription:
    """A channel that is subscribed to: its publications with greater ids than ``last_id`` are wanted.

    ``last_id`` is ``None`` until the file has been asked for it.
    """

    history: History | None = None
    last_id: int | None = None


class Reading(NamedTuple):
    """The result of one read.

    :param publications: those of subscribed channels.
    :param found_any: whether there were publications to any channel.
    :param was_behind: whether publications may have been pruned before they were read.
    """

    publications: list[Publication]
    found_any: bool
    was_behind: bool


class Reader:
    """Reads the publications since the last read.

    Subscriptions are added and removed on the event loop; all methods are called in the worker's thread.

    :param path: the path of the file, for messages.
    :param clock: returns seconds, and is never set back.
    """

    def __init__(self, path: str, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._namespace = namespace
        self._clock = clock
        #: Channel -> subscription.
        self.subscriptions: dict[str, Subscription] = {}
        #: Whether there may be new publications even if no other process has written.
        self.is_dirty = False
        # The id of the last publication that was examined, the version of the file that was read last and the
        # one that was found since, and when the file was last known to be read in full.
        self._last_id = 0
        self._version = self._found_version = 0
        self._read_at = 0.0

    def begin(self, store: Store) -> None:
        """Begin with a file that was opened: subscribe to all channels in it, and read later publications."""
        with store.transaction():
            now = store.clock.tick()
            for channel, subscription in list(self.subscriptions.items()):
                if subscription.last_id is not None:
                    store.subscribe(channel, subscription.history, now)
                    # In a new file, ids begin with 1 again.
                    subscription.last_id = 0
            self._last_id = store.last_id()
        self._read_at = self._clock()
        self.is_dirty = True

    def is_up_to_date(self, store: Store) -> bool:
        """Return whether there is nothing new to read; to be called before :meth:`read`."""
        self._found_version = store.version()
        if self.is_dirty or self._found_version != self._version:
            return False
        self._read_at = self._clock()
        return True

    def read(self, store: Store) -> Reading:
        """Read new publications; at most ``MAX_READ_BYTES``."""
        rows = store.published_after(self._last_id, MAX_READ)
        publications, has_more = self._unpack(store, rows)
        now = self._clock()
        was_behind = now - self._read_at > pruning.KEEP / 2
        self._read_at = now
        # It was found before the publications were: if the file has changed in between, it is read again.
        self._version = self._found_version
        self.is_dirty = has_more or len(rows) == MAX_READ
        return Reading(publications, bool(rows), was_behind)

    def _unpack(self, store: Store, rows: list[tuple[int, str, str, int]]) -> tuple[list[Publication], bool]:
        """Read the wanted publications of ``rows``, and return whether some are left to the next read."""
        publications: list[Publication] = []
        room = MAX_READ_BYTES
        for id_, namespace, channel, size in rows:
            subscription = self.subscriptions.get(channel)
            is_wanted = (
                namespace == self._namespace
                and subscription is not None
                and subscription.last_id is not None
                and id_ > subscription.last_id
            )
            if is_wanted:
                if publications and size > room:
                    return publications, True
                room -= size
                packed = store.packed(id_)
                try:
                    if packed is not None:
                        publications.append(unpack(packed))
                except InvalidData as exc:
                    logger.error("Skipping a row of %r that is no publication: %s", self._path, exc)
            self._last_id = id_
        return publications, False
