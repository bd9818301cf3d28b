"""Fan-out: the subscribers of one channel on this node, and the delivery of frames to all of them.

**Frames are not written at once.** A frame is put aside, and the fan-out asks, once, to be flushed at the end
of the current turn of the event loop. The flush makes one batch of all frames for each form that subscribers
have, and writes it to each subscriber of that form. Under load the batches grow by themselves, and when idle
nothing is delayed.

One rule makes that safe: **joining and leaving flush first.** A subscriber that joins gets no frame from
before it; a subscriber that leaves has been handed every frame from before it left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from hubbub.core.counts import Counts
from hubbub.core.forms import Form
from hubbub.core.frames import Frame, last_position
from hubbub.core.publication import Position
from hubbub.core.subscriber import Subscriber, deliver, is_kept_after_break

logger = logging.getLogger(__name__)

#: Asks the event loop to call back before it waits for I/O again.
Schedule: TypeAlias = Callable[[Callable[[], None]], object]


class FanOut:
    """The subscribers of one channel, and the frames that they have yet to be sent.

    :param channel: the channel's name.
    :param schedule: called with :meth:`flush` when there is something to flush.
    :param lossless: see :attr:`Batch.lossless`.
    :param counts: to which deliveries are added.
    """

    __slots__ = ("_counts", "_excluded", "_pending", "_schedule", "_subscribers", "channel", "lossless")

    def __init__(
        self, channel: str, schedule: Schedule, *, lossless: bool = False, counts: Counts | None = None
    ) -> None:
        self.channel = channel
        #: Whether subscribers must get every frame of the next flush; those that miss one are notified.
        self.lossless = lossless
        self._schedule = schedule
        self._counts = counts or Counts()
        # By form: all subscribers of one form are handed the same batch.
        self._subscribers: dict[Form, dict[str, Subscriber]] = {}
        self._pending: list[Frame] = []
        # Connection id -> the pending frames that it is not to get. Empty except for publish(exclude=…).
        self._excluded: dict[str, set[Frame]] = {}

    def __len__(self) -> int:
        """Return the number of subscribers."""
        return sum(map(len, list(self._subscribers.values())))

    # Subscribers

    def add(self, subscriber: Subscriber, form: Form) -> None:
        """Deliver to ``subscriber`` the frames from now on. A second call has no effect."""
        self.flush()
        self._drop(subscriber)
        self._subscribers.setdefault(form, {})[subscriber.id] = subscriber

    def remove(self, subscriber: Subscriber) -> None:
        """Deliver to ``subscriber`` the frames until now, and none after that."""
        self.flush()
        self._drop(subscriber)

    def notify_broken(self, position: Position) -> None:
        """Notify all subscribers that frames are lost, and drop those that do not stay.

        :param position: where the channel continues.
        """
        self._break([each for some in self._subscribers.values() for each in some.values()], position)

    # Frames

    def put_aside(self, frame: Frame) -> None:
        """Deliver ``frame`` with the next flush, except to the connection that its publication excludes."""
        if not self._pending:
            self._schedule(self.flush)
        self._pending.append(frame)
        if (excluded := frame.publication.exclude) is not None:
            self._excluded.setdefault(excluded, set()).add(frame)

    def flush(self) -> None:
        """Write the frames that were put aside to all subscribers.

        Never raises: other feeds wait to be flushed after this one, and subscribers wait to join or to leave.
        """
        if not self._pending:
            return
        frames, self._pending = self._pending, []
        excluded, self._excluded = self._excluded, {}
        broken: list[Subscriber] = []
        for form, subscribers in self._subscribers.items():
            failed: Iterable[Subscriber]
            try:
                if excluded:
                    failed = self._write_parts(frames, excluded, form, subscribers)
                else:
                    batch = form.batch(frames, self.channel, lossless=self.lossless)
                    failed = deliver(batch, subscribers.values())
                    self._counts.delivered += len(frames) * len(subscribers)
            except Exception:
                logger.exception("Could not write %d publications to %r.", len(frames), self.channel)
                failed = subscribers.values()
            if failed and self.lossless:
                broken += failed
        if broken:
            # After the loop over the forms: a form is removed together with its last subscriber.
            self._break(broken, last_position(frames))

    # Internal

    def _write_parts(
        self,
        frames: Sequence[Frame],
        excluded: Mapping[str, set[Frame]],
        form: Form,
        subscribers: Mapping[str, Subscriber],
    ) -> list[Subscriber]:
        """Write to each connection the frames that do not exclude it; see :func:`deliver`."""
        batch = form.batch(frames, self.channel, lossless=self.lossless)
        included = [each for each in subscribers.values() if each.id not in excluded]
        failed = deliver(batch, included)
        self._counts.delivered += len(frames) * len(included)
        for id_, without in excluded.items():
            rest = [frame for frame in frames if frame not in without]
            if rest and (subscriber := subscribers.get(id_)) is not None:
                failed += deliver(form.batch(rest, self.channel, lossless=self.lossless), (subscriber,))
                self._counts.delivered += len(rest)
        return failed

    def _break(self, subscribers: Sequence[Subscriber], position: Position) -> None:
        for subscriber in subscribers:
            if not is_kept_after_break(subscriber, self.channel, position):
                self._drop(subscriber)

    def _drop(self, subscriber: Subscriber) -> None:
        for form, subscribers in list(self._subscribers.items()):
            subscribers.pop(subscriber.id, None)
            if not subscribers:
                # Nothing is encoded in a form that no subscriber has.
                del self._subscribers[form]
