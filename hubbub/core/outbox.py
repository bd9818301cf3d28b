"""An outbox: the batches that wait for one slow client, bounded in bytes.

A client that keeps up never has anything waiting. For one that does not, up to ``limit`` bytes wait; then the
policy decides:

``disconnect``
    The client is disconnected as slow. It reconnects and starts again, instead of falling ever further
    behind.
``drop_oldest``
    The oldest waiting publications are dropped, the newest that fit are kept.
``latest``
    When a channel publishes while its last batch still waits, only the newest publication is kept. This is
    for dashboards and tickers, where only the present state counts. If one publication per channel is too
    much, the oldest of them are dropped.

Lossless batches, such as those of channels with a history, are always under ``disconnect``:
their clients reconnect for the publications that they missed. Before such a client is disconnected, waiting
publications that may be dropped give way.

Policies drop publications only, and only publications are refused. Messages that are sent to one client
directly are never dropped: the sender waits for room first (``Connection.send_*``), so they exceed the bound
by one message at the most. Missed publications are sent in this way too, a piece at a time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import count

from hubbub.core.frames import Batch
from hubbub.types import SlowConsumer


class Outbox:
    """The batches that wait for one client.

    :param limit: bytes that may wait (payloads plus a fixed charge for each message). One batch is taken
        however large it is when nothing else waits, so that a message larger than the bound can be sent.
    :param policy: decides when there is no room.
    """

    __slots__ = ("_droppable", "_keys", "_waiting", "dropped", "limit", "policy", "size")

    def __init__(self, limit: int, policy: SlowConsumer) -> None:
        self.limit = limit
        self.policy = policy
        #: Bytes that wait or are being sent.
        self.size = 0
        #: Publications that ``drop_oldest`` or ``latest`` have dropped so far.
        self.dropped = 0
        # In the order in which they go out. Under ``latest`` a publication's key is its channel.
        self._waiting: OrderedDict[int | str, Batch] = OrderedDict()
        self._keys = count()
        # Keys of the batches that may be dropped, in the order of ``_waiting``. ``disconnect`` drops none.
        self._droppable: deque[int | str] | None = None if policy == "disconnect" else deque()

    def __len__(self) -> int:
        """Return how many batches wait. A batch that has been taken does not wait any more."""
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether a direct send may come in now."""
        return self.size < self.limit

    @property
    def is_taken(self) -> bool:
        """Whether every waiting batch may be dropped.

        A client that is always behind, as one may be under ``drop_oldest`` and ``latest``, has taken the
        batches that count.
        """
        return len(self._waiting) == len(self._droppable or ())

    def push(self, batch: Batch) -> bool:
        """Let ``batch`` wait.

        :return: ``False`` if there is no room and the client must be disconnected; nothing waits any more
            then.
        """
        if batch.channel is None:
            self._append(next(self._keys), batch)
        elif self.policy == "disconnect" or batch.lossless:
            self._make_room(batch)
            if not self._fits(batch):
                self.clear()
                return False
            self._append(next(self._keys), batch)
        elif self.policy == "latest":
            self._append_droppable(batch.channel, batch)
        else:
            self._append_droppable(next(self._keys), batch)
        return True

    def take(self) -> Batch | None:
        """Return the batch that goes out next, if one waits; it counts until :meth:`sent` is called."""
        if not self._waiting:
            return None
        key, batch = self._waiting.popitem(last=False)
        if self._droppable and self._droppable[0] == key:
            self._droppable.popleft()
        return batch

    def sent(self, batch: Batch) -> None:
        """Take note that ``batch``, which was taken, is out: its bytes do not count any more."""
        self.size -= batch.cost

    def clear(self) -> None:
        """Drop everything that waits, because it cannot be sent any more."""
        self.size -= sum([batch.cost for batch in self._waiting.values()])
        self._waiting.clear()
        if self._droppable:
            self._droppable.clear()

    # Internal

    def _fits(self, batch: Batch) -> bool:
        return self.size == 0 or self.size + batch.cost <= self.limit

    def _make_room(self, batch: Batch) -> None:
        """Drop batches that may be dropped, the oldest first, until ``batch`` fits, which may not."""
        while self._droppable and not self._fits(batch):
            self._drop(self._waiting.pop(self._droppable.popleft()))

    def _append(self, key: int | str, batch: Batch) -> None:
        self._waiting[key] = batch
        self.size += batch.cost

    def _append_droppable(self, key: int | str, batch: Batch) -> None:
        assert self._droppable is not None
        if (older := self._waiting.get(key)) is not None:
            # Under ``latest`` the newer batch takes the place of the older one in the queue. At the end of
            # the queue, a channel that publishes all the time would never be sent.
            self._drop(older)
            self.dropped += len(batch.messages) - 1
            batch = batch.newest()
        else:
            self._droppable.append(key)
        self._append(key, batch)
        # The oldest goes first. The new batch may stand in front, and goes only if it is the last: then a
        # batch that takes all the room is being sent.
        while self.size > self.limit and self.size > batch.cost and self._droppable:
            oldest = self._droppable[0]
            if oldest == key and len(self._droppable) > 1:
                oldest = self._droppable[1]
            self._droppable.remove(oldest)
            self._drop(self._waiting.pop(oldest))

    def _drop(self, batch: Batch) -> None:
        self.dropped += len(batch.messages)
        self.size -= batch.cost
