"""A feed: one channel on this node, its position, and the detection of publications that subscribers miss.

**No publication is missed silently.** In a channel with history, publications carry positions. The feed's
position is that of every subscriber, so one comparison per publication, not one per subscriber, detects a
gap. The next offset is delivered, an earlier one is a duplicate and dropped, anything else means that
publications are missing. Then the feed *repairs*: it asks for the history since its position, keeps
publications that arrive meanwhile, and continues from there. If the history does not reach back far enough,
every subscriber is notified that its run is broken. A run is never continued over a gap as if nothing was
missing.

The subscribers and the delivery to them are in :mod:`hubbub.core.fanout`. A feed has no socket and no engine:
it is called when something happens, and asks through two callbacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf

from hubbub.core.counts import Counts
from hubbub.core.fanout import FanOut, Schedule
from hubbub.core.forms import Form
from hubbub.core.frames import Frame
from hubbub.core.history import History
from hubbub.core.publication import START, Position, Publication
from hubbub.core.ring import Ring
from hubbub.core.subscriber import Start, Subscriber, deliver
from hubbub.exceptions import Unrecoverable

#: Publications that are kept during a repair. Those beyond it are dropped and read from history afterwards.
MAX_WAITING = 1000


class Feed:
    """One channel on this node.

    :param channel: the channel's name.
    :param schedule: called with a callback when there is something to flush; see :class:`FanOut`.
    :param repair: called when publications are missing, or may be. It reads the channel's history since
        :attr:`since` and answers with :meth:`repaired`, once.
    :param position: the position of the channel.
    :param history: how many publications the channel is declared to keep, if any.
    :param clock: returns seconds that never go back.
    :param counts: to which the events of the channel are added.
    """

    __slots__ = (
        "_clock",
        "_fan_out",
        "_history",
        "_is_stale",
        "_repair",
        "_ring",
        "_waiting",
        "channel",
        "counts",
        "is_repairing",
        "last_id",
        "position",
    )

    def __init__(
        self,
        channel: str,
        schedule: Schedule,
        repair: Callable[[Feed], object],
        position: Position = START,
        history: History | None = None,
        clock: Callable[[], float] = time.monotonic,
        counts: Counts | None = None,
    ) -> None:
        self.channel = channel
        #: The counts of the node.
        self.counts = counts or Counts()
        #: The position of the last publication that every subscriber has been handed, or will be with the
        #: next flush.
        self.position = position
        #: The id of that publication; empty while it is not known.
        self.last_id = ""
        #: Whether publications are kept until :meth:`repaired` is called.
        self.is_repairing = False
        self._fan_out = FanOut(channel, schedule, lossless=position != START, counts=self.counts)
        self._repair = repair
        self._history = history
        self._clock = clock
        # The most recent frames. Made with the first one: a channel without history needs none.
        self._ring: Ring | None = None
        # Publications that arrived during a repair; and whether that repair is not enough, so another one
        # follows.
        self._waiting: list[Publication] = []
        self._is_stale = False

    def __len__(self) -> int:
        """Return the number of subscribers."""
        return len(self._fan_out)

    # Publications

    def publish(self, publication: Publication) -> Frame | None:
        """Take a publication from the engine.

        :return: the frame that is sent to subscribers; ``None`` if that is not decided yet.
        """
        self.counts.received += 1
        if publication.offset == 0:
            frame = Frame(publication)
            self._fan_out.put_aside(frame)
            if self.position != START:
                # The channel had a history, and the engine has lost it. A read that is under way may be from
                # before.
                self._verify_again()
            return frame
        if self.is_repairing:
            self._wait(publication)
            return None
        if self._is_next(publication):
            return self._accept(publication)
        if not self._is_duplicate(publication):
            # The history has it, or it would not have been announced: the repair will find it.
            self.verify()
        return None

    def flush(self) -> None:
        """Write to all subscribers the frames that were put aside. Never raises."""
        self._fan_out.flush()

    # Subscribers

    def join(
        self, subscriber: Subscriber, form: Form, start: Start | None = None, missed: Sequence[Frame] = ()
    ) -> None:
        """Add ``subscriber``. A second call has no effect.

        :param form: how it is written to.
        :param start: passed to :meth:`Subscriber.joined`; by default the subscriber begins at the feed's
            position.
        :param missed: frames that it is handed first.
        """
        self.flush()
        subscriber.joined(self.channel, form, start or Start(self.position), missed)
        self.add(subscriber, form)

    def add(self, subscriber: Subscriber, form: Form) -> None:
        """Add ``subscriber``, which has been handed everything up to the feed's position."""
        self._fan_out.add(subscriber, form)

    def resume(
        self,
        subscriber: Subscriber,
        since: Position,
        form: Form,
        history: Sequence[Frame] = (),
        limit: float = inf,
        start: Start | None = None,
    ) -> Position | None:
        """Hand ``subscriber`` the next frames after ``since``, and add it with the last of them.

        Publications that exclude the subscriber are left out.

        :param form: how it is written to.
        :param history: frames in order, without a gap, which the recent buffer may not hold.
        :param limit: bytes that the piece may have. One frame is handed over however large it is.
        :param start: given with the first piece, which goes to :meth:`Subscriber.joined`.
        :return: the position of the last publication of the piece. The subscriber has joined if that is the
            feed's :attr:`position`. ``None`` if neither the recent buffer nor ``history`` has the frames
            after ``since``: nothing has been handed over, and it must be read.
        :raises Unrecoverable: the position is of another epoch, or was never reached by this channel.
        """
        frames = self.missed(since, history)
        if frames is None:
            return None
        offset, cost = since.offset, 0
        piece = []
        for frame in frames:
            cost += frame.encoded(form.codec).cost
            if cost > limit and offset > since.offset:
                break
            offset += 1
            if frame.publication.exclude != subscriber.id:
                piece.append(frame)
        # Its frames may have been encoded just now, and so have grown.
        self.trim()
        reached = Position(offset, self.position.epoch)
        if start is not None:
            subscriber.joined(self.channel, form, start, piece)
        elif piece:
            # Sent like a direct message: the subscriber was asked whether it has room.
            deliver(form.reply(*[frame.encoded(form.codec) for frame in piece]), (subscriber,))
        if reached == self.position:
            self.add(subscriber, form)
        return reached

    def missed(self, since: Position, history: Sequence[Frame] = ()) -> Sequence[Frame] | None:
        """Return the frames after ``since``, up to the feed's position or the last that is in memory.

        :param history: frames in order, without a gap, which the recent buffer may not hold.
        :return: ``None`` if neither the recent buffer nor ``history`` has them.
        :raises Unrecoverable: the position is of another epoch, or was never reached by this channel.
        """
        self.flush()
        offset, epoch = self.position
        if (since != START and since.epoch != epoch) or since.offset > offset:
            raise Unrecoverable(self.channel, *self.position)
        count = offset - since.offset
        recent = self._ring.newest(count) if self._ring is not None else []
        if len(recent) == count:
            return recent
        first = history[0].publication if history else None
        if first is None or first.epoch != epoch:
            return None
        # There may be more than was asked for on either side.
        skip = since.offset + 1 - first.offset
        if not 0 <= skip < len(history):
            return None
        return history[skip : skip + count]

    def remembers(self, since: Position) -> bool:
        """Return whether there are frames after ``since`` and the recent buffer holds them all."""
        offset, epoch = self.position
        is_of_epoch = since == START or since.epoch == epoch
        return is_of_epoch and offset - len(self._ring or ()) <= since.offset < offset

    def leave(self, subscriber: Subscriber) -> None:
        """Remove ``subscriber``, after it has been handed everything that was published until now."""
        self._fan_out.remove(subscriber)

    # Repair

    def opened(self, position: Position, last_id: str = "") -> None:
        """Continue from the channel's position when the node subscribed to it, after :meth:`hold`.

        :param last_id: the id of the publication there, if there is one.
        """
        self._move(position)
        self.last_id = last_id
        self.repaired((), position)

    @property
    def since(self) -> Position:
        """The position from which a repair reads.

        It is one publication further back than needed, to see whether the engine still has the publication
        that was delivered, and was not set back to an earlier state.
        """
        offset, epoch = self.position
        return Position(offset - 1, epoch) if offset > 0 else START

    def verify(self) -> None:
        """Ask for a repair, unless one is under way."""
        if not self.is_repairing:
            self.is_repairing = True
            self._repair(self)

    def hold(self) -> bool:
        """Keep publications that arrive, as during a repair, until :meth:`repaired` is called.

        :return: ``False`` if that is so already. The read under way may be older than the reason for this
            call, so another repair follows.
        """
        if self.is_repairing:
            self._is_stale = True
            return False
        self.is_repairing = True
        return True

    def stands_at(self, position: Position, last_id: str) -> bool:
        """Return whether the feed is where the engine says that the channel is.

        :param last_id: the id of the publication there; empty if the engine does not have it.
        """
        if position != self.position:
            return False
        # A feed that has seen no publication yet learns here which one to expect if the engine is set back.
        self.last_id = self.last_id or last_id
        return last_id in ("", self.last_id)

    def forget(self) -> None:
        """Forget the recent publications, because the channel's history was removed."""
        self._ring = None
        self._verify_again()

    def trim(self) -> None:
        """Drop the frames that the recent buffer may not keep any longer."""
        if self._ring is not None:
            self._ring.trim()

    def contradicts(self, history: Sequence[Publication], top: Position) -> bool:
        """Return whether the engine was set back to an earlier state of the epoch.

        It has no publication at the feed's position then, or another one, if it has continued since: offsets
        of this epoch have two meanings.

        :param history: the publications that the channel has kept after :attr:`since`, in order.
        :param top: the channel's position at the time of the read.
        """
        offset, epoch = self.position
        if epoch != top.epoch:
            return False
        if top.offset < offset:
            return True
        return bool(self.last_id) and any(
            each.offset == offset and each.id != self.last_id for each in history
        )

    def repaired(self, history: Sequence[Publication], top: Position) -> bool:
        """Continue after a repair.

        :param history: the publications that the channel has kept after :attr:`since`, in order.
        :param top: the channel's position at the time of the read.
        :return: whether no publication is missing.
        """
        self.is_repairing = False
        is_complete = self._catch_up(history, top)
        waiting, self._waiting = self._waiting, []
        is_behind, self._is_stale = self._is_stale, False
        for publication in waiting:
            if self._is_next(publication):
                self._accept(publication)
            elif not self._is_duplicate(publication):
                is_behind = True
        if is_behind:
            # The history that was just read may be from before a removal.
            self._ring = None
            self.verify()
        return is_complete

    def remember(self, history: Sequence[Publication], top: Position) -> None:
        """Take a piece of history that was read on behalf of one subscriber.

        New publications in it go to all subscribers; old ones are kept for others that resume. If it
        contradicts the frames that subscribers have been handed, the feed repairs first.

        :param history: publications in order, without a gap.
        :param top: the channel's position at the time of the read.
        """
        if self.is_repairing:
            return
        offset, epoch = self.position
        is_at_odds = top.epoch != epoch or (top.offset >= offset and self.contradicts(history, top))
        if is_at_odds:
            self.verify()
            return
        for publication in history:
            if self._is_next(publication):
                self._accept(publication, is_live=False)
        self._learn(history)
        self._extend_ring(history)

    # Internal

    def _verify_again(self) -> None:
        """Ask for a repair whose read begins from now on."""
        if self.hold():
            self._repair(self)

    def _is_next(self, publication: Publication) -> bool:
        offset, epoch = self.position
        return publication.offset == offset + 1 and (publication.epoch == epoch or self.position == START)

    def _is_duplicate(self, publication: Publication) -> bool:
        offset, epoch = self.position
        if publication.offset == offset and self.last_id and publication.id != self.last_id:
            # Another publication has the same offset: the engine was set back.
            return False
        return publication.offset <= offset and publication.epoch == epoch

    def _catch_up(self, history: Sequence[Publication], top: Position) -> bool:
        missing = self._missing(history, top)
        if missing is None:
            self._break(history, top)
        else:
            for publication in missing:
                self._accept(publication, is_live=False)
        self._learn(history)
        return missing is not None

    def _learn(self, history: Sequence[Publication]) -> None:
        """Take the id of the publication at our position from ``history``, if it is not known."""
        if not self.last_id:
            self.last_id = next((each.id for each in history if each.position == self.position), "")

    def _missing(self, history: Sequence[Publication], top: Position) -> list[Publication] | None:
        """Return the part of ``history`` after our position; ``None`` if it does not lead up to ``top``."""
        offset, epoch = self.position
        if (epoch != top.epoch and self.position != START) or self.contradicts(history, top):
            return None
        missing = [publication for publication in history if publication.offset > offset]
        wanted = range(offset + 1, top.offset + 1)
        return missing if [each.offset for each in missing] == list(wanted) else None

    def _break(self, history: Sequence[Publication], top: Position) -> None:
        self.flush()
        self._move(top)
        self._ring = None
        self.last_id = history[-1].id if history and history[-1].position == top else ""
        self._fan_out.notify_broken(top)

    def _move(self, position: Position) -> None:
        self.position = position
        self._fan_out.lossless = position != START

    def _accept(self, publication: Publication, *, is_live: bool = True) -> Frame:
        self._move(publication.position)
        self.last_id = publication.id
        frame = Frame(publication)
        self._recent().append(frame, is_live=is_live)
        self._fan_out.put_aside(frame)
        return frame

    def _recent(self) -> Ring:
        if self._ring is None:
            self._ring = Ring(self._history, self._clock)
        return self._ring

    def _wait(self, publication: Publication) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(publication)
        else:
            self._is_stale = True

    def _extend_ring(self, history: Sequence[Publication]) -> None:
        """Put older publications in front of the recent buffer, as far as there is room."""
        ring, (offset, epoch) = self._recent(), self.position
        offset -= len(ring)
        older = []
        for publication in reversed(history):
            if publication.offset > offset or publication.epoch != epoch:
                continue
            if publication.offset != offset:
                break
            older.append(publication)
            offset -= 1
        ring.prepend(older)
