"""Resume: a subscriber on its way into a feed, after it has been handed the publications that it missed.

Missed publications go out in pieces. The last piece and joining the feed are one step, so nothing can be
published in between. Changes of the feed between two pieces are detected with the next one: if the
publications after the last piece are missing by then, the subscriber is notified like one that has joined.

A subscriber that does not recover in pieces is handed everything when it joins, or else begins at the feed's
position and has not recovered.

A resume has no engine and does not wait. It is asked for one step after another, and answers which part of
the history must be read before the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from hubbub.core.feed import Feed
from hubbub.core.forms import Form
from hubbub.core.frames import Frame
from hubbub.core.publication import START, Position
from hubbub.core.subscriber import Start, Subscriber, is_kept_after_break
from hubbub.exceptions import Unrecoverable


class Resume:
    """One subscriber on its way into one feed.

    :param form: how it is written to.
    :param since: the position up to which it has everything; ``None`` for a subscriber that is new.
    :param history: how many of the last publications a new subscriber is handed.
    :param start: reported to a subscriber that begins at ``since``, in place of one that has recovered from
        there.
    :param reports_recovery: whether a subscriber whose ``since`` cannot be recovered begins at the feed's
        position, which is reported to it; by default, if its form can do that.
    """

    def __init__(
        self,
        feed: Feed,
        subscriber: Subscriber,
        form: Form,
        since: Position | None,
        history: int,
        *,
        start: Start | None = None,
        reports_recovery: bool | None = None,
    ) -> None:
        self._feed = feed
        self._subscriber = subscriber
        self._form = form
        self._since = since
        self._history = history
        self._start_given = start
        self._reports_recovery = form.reports_recovery if reports_recovery is None else reports_recovery
        # The position up to which the subscriber has everything; ``None`` until that is computed from
        # ``history``.
        self._reached = since
        # The frames after that, for a subscriber that is handed everything at once.
        self._gathered: list[Frame] = []
        # The position after which history must be read; the one after which it was read last, and the result.
        self._wanted: Position | None = None
        self._read_after: Position | None = None
        self._frames: Sequence[Frame] = ()
        # Whether ``since`` is after the engine's own position.
        self._is_beyond = False
        #: Whether the subscriber gets everything after ``since``; ``None`` without a ``since``, and until it
        #: is known. It may turn to ``False`` until the resume is complete.
        self.recovered: bool | None = None
        #: Whether the subscriber has got its first piece, so that it cannot be refused any more.
        self.has_begun = False
        #: Whether the subscriber has joined, or was dropped because its run is broken. There are no more
        #: steps.
        self.is_complete = False

    @property
    def position(self) -> Position:
        """Up to where the subscriber has been handed everything."""
        return self._feed.position if self._reached is None else self._reached

    def step(self, limit: float) -> Position | None:
        """Hand over the next piece, and join with the last.

        :param limit: bytes that may be handed over.
        :return: the position after which history must be read for :meth:`take` before the next step; ``None``
            if that is not needed.
        :raises Unrecoverable: publications after ``since`` are missing, and that is not reported. Nothing
            has been handed over.
        """
        feed = self._feed
        feed.flush()
        if self._reached is None:
            self._reached = Position(max(0, feed.position.offset - self._history), feed.position.epoch)
        if self._is_ahead(self._reached) and not self._is_beyond and self._read_after != feed.position:
            # The client was on a node with a later position. The feed catches up with the history that is
            # read. A position that never existed is detected with the first read, however much is published
            # meanwhile.
            self._wanted = feed.position
            return self._wanted
        try:
            if self._subscriber.recovers_in_pieces:
                return self._hand_over_piece(self._reached, limit)
            return self._hand_over_all(self._reached, limit)
        except Unrecoverable:
            self._give_up()
            return None

    def take(self, frames: Sequence[Frame], top: Position | None = None) -> None:
        """Take the history that was read: frames in order, without a gap, up to any point.

        :param top: the channel's position at the time of the read; ``None`` if it was read before the step.
        """
        self._read_after, self._frames = self._wanted, frames
        if top is not None and self._reached is not None and top.epoch == self._reached.epoch:
            self._is_beyond = top.offset < self._reached.offset

    # Internal

    def _is_ahead(self, position: Position) -> bool:
        top = self._feed.position
        return position.epoch == top.epoch and position.offset > top.offset

    def _hand_over_piece(self, reached: Position, limit: float) -> Position | None:
        feed = self._feed
        start = None if self.has_begun else self._start(reached)
        handed = feed.resume(self._subscriber, reached, self._form, self._frames, limit, start)
        if handed is None:
            return self._read(reached)
        self._reached = handed
        # Frames that are not needed any more must not be held while the client takes its time.
        self._frames = [each for each in self._frames if each.publication.offset > handed.offset]
        self.has_begun = True
        self.is_complete = handed == feed.position
        return None

    def _hand_over_all(self, reached: Position, limit: float) -> Position | None:
        feed, gathered = self._feed, self._gathered
        while True:
            at = gathered[-1].position if gathered else reached
            frames = feed.missed(at, self._frames)
            if frames is None:
                return self._read(at)
            gathered += frames
            reached = self._reached = self._fit(reached, limit)
            if at.offset + len(frames) == feed.position.offset:
                break
        # The frames may have been encoded just now.
        feed.trim()
        missed = [frame for frame in gathered if frame.publication.exclude != self._subscriber.id]
        feed.join(self._subscriber, self._form, self._start(reached), missed)
        self._complete()
        return None

    def _fit(self, reached: Position, limit: float) -> Position:
        """Return the position from which everything gathered fits into ``limit`` bytes.

        :raises Unrecoverable: that is not the position that the subscriber has given.
        """
        codec, gathered = self._form.codec, self._gathered
        costs = [
            0 if frame.publication.exclude == self._subscriber.id else frame.encoded(codec).cost
            for frame in gathered
        ]
        cost, skip = sum(costs), 0
        while cost > limit:
            if self._since is not None:
                raise Unrecoverable(self._feed.channel, *self._feed.position)
            # A new subscriber gets the last publications that fit.
            reached, cost, skip = gathered[skip].position, cost - costs[skip], skip + 1
        del gathered[:skip]
        return reached

    def _start(self, reached: Position) -> Start:
        if self._start_given is not None:
            return self._start_given
        top = self._feed.position
        self.recovered = None if self._since is None else top != START
        return Start(Position(0, top.epoch) if reached == START else reached, self.recovered)

    def _read(self, after: Position) -> Position:
        """Ask for the history after ``after``.

        :raises Unrecoverable: it has been read, and the next publication was not in it.
        """
        if self._read_after == after:
            raise Unrecoverable(self._feed.channel, *self._feed.position)
        self._wanted = after
        return after

    def _give_up(self) -> None:
        """Continue from another position, because publications are missing, and report that."""
        feed, subscriber = self._feed, self._subscriber
        self._gathered = []
        if self._since is not None:
            self.recovered = False
        if self.has_begun:
            if is_kept_after_break(subscriber, feed.channel, feed.position):
                feed.add(subscriber, self._form)
        elif self._since is None:
            # The last publications are those that the history still has.
            self._reached = self._first_kept()
            self._read_after = None
            return
        elif self._reports_recovery:
            feed.join(subscriber, self._form, Start(feed.position, recovered=False))
        else:
            raise  # the Unrecoverable that is being handled
        self._complete()

    def _complete(self) -> None:
        self._reached, self._gathered, self._frames = self._feed.position, [], ()
        self.has_begun = self.is_complete = True

    def _first_kept(self) -> Position | None:
        """Return the position before the first publication that was read; ``None`` to begin again."""
        top = self._feed.position
        if self._reached is None or self._reached.epoch != top.epoch:
            return None
        first = self._frames[0].publication if self._frames else None
        if first is None or first.epoch != top.epoch:
            return top
        return Position(min(first.offset - 1, top.offset), top.epoch)
