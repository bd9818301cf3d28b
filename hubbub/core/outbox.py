"""An outbox: what waits for one slow connection, bounded in bytes.

A connection that keeps up never has anything waiting. One that does not gets ``limit`` bytes of patience;
then its policy decides:

``disconnect``
    Let it go. A client that comes back starts afresh, instead of falling ever further behind.
``drop_oldest``
    Drop the oldest publications that wait, keep the newest that fit.
``latest``
    When a channel publishes while its last batch still waits, keep the newest publication only. For
    dashboards and tickers, where nothing but the present counts. Should one publication per channel be
    too much, the oldest of them give way.

A channel with history is under ``disconnect`` whatever the policy: its clients come back for what they have
missed. Before such a client is disconnected, the publications of other channels that may be dropped give way.

Policies drop publications only, and only publications are refused. What is sent to this client directly is
never dropped: its sender waits for room first (``Connection.send_*``), so it exceeds the bound by one
message at the most. Missed publications are sent in this way too, a piece at a time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import count

from hubbub.core.frames import Batch
from hubbub.types import SlowConsumer


class Outbox:
    """What waits for one connection.

    :param limit: bytes that may wait (payloads plus a fixed charge for each frame). One batch is taken
        however large it is when nothing else waits, so that a message larger than the bound can be sent.
    :param policy: what gives way when there is no room.
    """

    __slots__ = ("_droppable", "_keys", "_waiting", "dropped", "limit", "policy", "size")

    def __init__(self, limit: int, policy: SlowConsumer) -> None:
        self.limit = limit
        self.policy = policy
        #: Bytes that wait or are being sent.
        self.size = 0
        #: Publications dropped so far by ``drop_oldest`` or ``latest``.
        self.dropped = 0
        # In the order in which they go out. Under ``latest`` a publication's key is its channel.
        self._waiting: OrderedDict[int | str, Batch] = OrderedDict()
        self._keys = count()
        # Keys of what may be dropped, in the order of ``_waiting``; nothing is under ``disconnect``.
        self._droppable: deque[int | str] | None = None if policy == "disconnect" else deque()

    def __len__(self) -> int:
        """How many batches wait. A batch that has been taken does not wait any more."""
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether a direct send may come in now."""
        return self.size < self.limit

    @property
    def is_taken(self) -> bool:
        """Whether nothing waits but what may be dropped. A client that is always behind, as one may be under
        ``drop_oldest`` and ``latest``, has taken what counts."""
        return len(self._waiting) == len(self._droppable or ())

    def push(self, batch: Batch) -> bool:
        """Let ``batch`` wait. ``False`` when there is no room and the policy is to let the connection go;
        nothing waits then any more."""
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
        """The batch that goes out next. It counts until :meth:`sent` is called with it."""
        if not self._waiting:
            return None
        key, batch = self._waiting.popitem(last=False)
        if self._droppable and self._droppable[0] == key:
            self._droppable.popleft()
        return batch

    def sent(self, batch: Batch) -> None:
        """``batch``, which was taken, is on its way: its bytes do not count any more."""
        self.size -= batch.cost

    def clear(self) -> None:
        """Forget everything that waits: there is nobody to send it to any more."""
        self.size -= sum([batch.cost for batch in self._waiting.values()])
        self._waiting.clear()
        if self._droppable:
            self._droppable.clear()

    def _fits(self, batch: Batch) -> bool:
        return self.size == 0 or self.size + batch.cost <= self.limit

    def _make_room(self, batch: Batch) -> None:
        """Drop what may be dropped, the oldest first, until ``batch``, which may not, fits."""
        while self._droppable and not self._fits(batch):
            self._drop(self._waiting.pop(self._droppable.popleft()))

    def _append(self, key: int | str, batch: Batch) -> None:
        self._waiting[key] = batch
        self.size += batch.cost

    def _append_droppable(self, key: int | str, batch: Batch) -> None:
        assert self._droppable is not None
        if (older := self._waiting.get(key)) is not None:
            # Under ``latest`` the newer takes the older one's place in the queue: were it put at the end, a
            # channel that changes all the time would never be sent.
            self._drop(older)
            self.dropped += len(batch.messages) - 1
            batch = batch.newest()
        else:
            self._droppable.append(key)
        self._append(key, batch)
        # The oldest first, and the newcomer, which may stand in front, only when it is the last: something
        # larger than all that is being sent then.
        while self.size > self.limit and self.size > batch.cost and self._droppable:
            oldest = self._droppable[0]
            if oldest == key and len(self._droppable) > 1:
                oldest = self._droppable[1]
            self._droppable.remove(oldest)
            self._drop(self._waiting.pop(oldest))

    def _drop(self, batch: Batch) -> None:
        self.dropped += len(batch.messages)
        self.size -= batch.cost
