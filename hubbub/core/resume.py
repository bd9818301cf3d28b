"""Joining: a subscriber on its way into a feed, after it has been handed what it missed.

What was missed goes out in pieces. The last piece and becoming a member are one step, so that nothing can be
published in between. What happens to the feed between two pieces is found out with the next one: if what
follows the last piece is not there any more, the subscriber is told so, as a member would be.

A joining has no engine and does not wait. It is asked for one step after another, and answers which part of
the history has to be read before the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from hubbub.core.feed import Feed, Subscriber
from hubbub.core.forms import Form
from hubbub.core.frames import Frame
from hubbub.core.publication import START, Position
from hubbub.exceptions import Unrecoverable


class Resume:
    """One subscriber on its way into one feed.

    :param form: how it is written to.
    :param since: the position up to which it has everything; ``None`` for a subscriber that is new.
    :param history: of the last publications, so many are handed to a subscriber that is new.
    """

    def __init__(
        self, feed: Feed, member: Subscriber, form: Form, since: Position | None, history: int
    ) -> None:
        self._feed = feed
        self._member = member
        self._form = form
        self._since = since
        self._history = history
        # Up to where the member has everything; ``None`` as long as that follows from ``history``.
        self._reached = since
        # The position after which history is to be read; the one after which it was read last, and that.
        self._wanted: Position | None = None
        self._read_after: Position | None = None
        self._frames: Sequence[Frame] = ()
        # Whether the engine itself has not come as far as ``since``.
        self._is_beyond = False
        #: Whether something has been handed over.
        self.has_begun = False
        #: Whether the subscriber is a member of the feed.
        self.has_joined = False

    @property
    def position(self) -> Position:
        """Up to where the subscriber has been handed everything."""
        return self._feed.position if self._reached is None else self._reached

    def step(self, limit: float) -> Position | None:
        """Hand over the next piece, and join with the last.

        :param limit: bytes of the piece.
        :return: the position after which history is to be read for :meth:`take` before the next step;
            ``None`` if that is not needed.
        :raises Unrecoverable: not everything since ``since`` is there, and the form has no way to say so.
            Nothing has been handed over.
        """
        feed = self._feed
        feed.flush()
        if self._reached is None:
            self._reached = Position(max(0, feed.position.offset - self._history), feed.position.epoch)
        if self._is_ahead(self._reached) and not self._is_beyond and self._read_after != feed.position:
            # It was on a node that was further on. The feed catches up with what is read. A position that
            # never was is found out with the first read, however much is published meanwhile.
            self._wanted = feed.position
            return self._wanted
        try:
            reached = self._resume(self._reached, limit)
        except Unrecoverable:
            self._give_up()
            return None
        if reached is None:
            self._wanted = self._reached
            return self._wanted
        self._reached = reached
        # What is not needed any more is not to be held while the client takes its time.
        self._frames = [
            each for each in self._frames if each.publication and each.publication.offset > reached.offset
        ]
        self.has_begun = True
        self.has_joined = reached == feed.position
        return None

    def take(self, frames: Sequence[Frame], top: Position | None = None) -> None:
        """What was read, in order, without a gap, up to any point.

        :param top: where the channel stood when that was read; ``None`` if it was read before the step.
        """
        self._read_after, self._frames = self._wanted, frames
        if top is not None and self._reached is not None and top.epoch == self._reached.epoch:
            self._is_beyond = top.offset < self._reached.offset

    # Inside

    def _is_ahead(self, position: Position) -> bool:
        top = self._feed.position
        return position.epoch == top.epoch and position.offset > top.offset

    def _resume(self, reached: Position, limit: float) -> Position | None:
        feed = self._feed
        opening = None
        if not self.has_begun:
            has_positions = feed.position != START
            begin = Position(0, feed.position.epoch) if reached == START else reached
            recovered = None if self._since is None else has_positions
            opening = self._form.opening(feed.channel, begin, recovered)
        handed = feed.resume(self._member, reached, self._form, self._frames, limit, opening)
        if handed is None and self._read_after == reached:
            # It has been read, and was not there.
            raise Unrecoverable(feed.channel, *feed.position)
        return handed

    def _give_up(self) -> None:
        """What follows is not there: go on from somewhere else, and say so."""
        feed, member = self._feed, self._member
        if self.has_begun:
            feed.join(member, self._form)
            member.broken(feed.channel, feed.position)
        elif self._since is None:
            # The last publications are those that are there.
            self._reached = self._first_kept()
            self._read_after = None
            return
        else:
            opening = self._form.opening(feed.channel, feed.position, recovered=False)
            if opening is None:
                raise  # the Unrecoverable that is being handled
            feed.join(member, self._form, opening)
        self._reached = feed.position
        self.has_begun = self.has_joined = True

    def _first_kept(self) -> Position | None:
        """The position before the first publication that was read; ``None`` to begin anew."""
        top = self._feed.position
        if self._reached is None or self._reached.epoch != top.epoch:
            return None
        first = self._frames[0].publication if self._frames else None
        if first is None or first.epoch != top.epoch:
            return top
        return Position(min(first.offset - 1, top.offset), top.epoch)
