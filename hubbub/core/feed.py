"""A feed: one channel on this node. Who is in it, where it stands, and what they have yet to be sent.

**Nobody is written to at once.** A publication is put aside, and the feed asks, once, to be flushed at the
end of the current turn of the event loop; the flush then writes everything that was put aside to each member
in one go. Under load the batches grow by themselves, and when idle nothing is delayed. What makes that safe
is one rule: membership changes flush first. Whoever joins gets nothing that was published before they came;
whoever leaves has been handed everything that was published before they left.

**Nothing is missed without being told.** In a channel with history, publications carry positions. The feed's
position is that of every member, so one comparison per publication, not one per member, finds what is
missing. The next offset is delivered, an earlier one is a duplicate and dropped, anything else means that
something is missing. Then the feed *repairs*: it asks for the history since its position, lets wait what
comes meanwhile, and goes on from there. If the history does not reach back, every member is told that the run
is broken. It is never continued as if nothing had happened.

A feed has no socket and no engine. It is told what happens, and asks through two callbacks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

from hubbub.core.frames import Batch, Frame
from hubbub.core.publication import START, Position, Publication
from hubbub.core.ring import Ring
from hubbub.exceptions import Unrecoverable
from hubbub.types import History

logger = logging.getLogger("hubbub.feed")

#: Ask the event loop to call back before it waits for I/O again.
Schedule: TypeAlias = Callable[[Callable[[], None]], object]

#: Publications that may wait for a repair. Beyond that they are dropped and read from history afterwards.
MAX_WAITING = 1000


class Member(Protocol):
    """Someone in a channel.

    ``write`` hands over a batch and returns at once with the number of bytes it has taken: it never waits
    for the client, and it does not change who is in the feed. If it takes fewer than all, or raises
    ``OSError``, the member's ``write_rest`` sees to the rest. It may be a different callable from one
    moment to the next, and for a client that keeps up it is nothing but the system call.
    """

    id: str

    @property
    def write(self) -> Callable[[Batch], int]: ...

    def write_rest(self, batch: Batch, taken: int) -> None:
        """``write`` took only the first ``taken`` bytes of ``batch``."""

    def broken(self, channel: str, position: Position) -> None:
        """What comes next in ``channel`` does not follow what came before: something between the two is lost.
        The channel goes on from ``position``. Does not change who is in the feed."""


def deliver(batch: Batch, members: Iterable[Member]) -> None:
    """Write ``batch`` to each of ``members``: the inner loop of everything here."""
    size = len(batch)
    for member in members:
        try:
            taken = member.write(batch)
        except OSError:
            # No room, or nobody there any more.
            taken = 0
        except Exception:
            _failed(batch, member)
            continue
        if taken != size:
            try:
                member.write_rest(batch, taken)
            except Exception:
                _failed(batch, member)


def _failed(batch: Batch, member: Member) -> None:
    """Writing to ``member`` raised what it should not: that is one member's trouble, not the channel's."""
    logger.exception("Could not write to connection %s.", member.id)
    publication = batch.frames[-1].publication
    if batch.has_positions and publication is not None:
        # Part of the batch may be lost to it.
        _tell_broken(member, publication.channel, publication.position)


def _tell_broken(member: Member, channel: str, position: Position) -> None:
    try:
        member.broken(channel, position)
    except Exception:
        logger.exception("Could not tell connection %s that something in %r is lost.", member.id, channel)


class Feed:
    """One channel on this node.

    :param channel: the channel's name.
    :param schedule: called with :meth:`flush` when there is something to flush.
    :param repair: called when publications are missing, or may be: whoever is asked reads the channel's
        history since :attr:`since` and answers with :meth:`repaired`, once.
    :param history: what the channel is declared to keep, if it is.
    :param clock: seconds, from any beginning.
    """

    __slots__ = (
        "_clock",
        "_excluded",
        "_history",
        "_is_stale",
        "_members",
        "_pending",
        "_repair",
        "_ring",
        "_schedule",
        "_waiting",
        "channel",
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
    ) -> None:
        self.channel = channel
        #: Of the last publication that every member has been handed, or will be with the next flush.
        self.position = position
        #: The id of that publication; empty as long as it is not known.
        self.last_id = ""
        #: Whether what comes waits until :meth:`repaired` is called.
        self.is_repairing = False
        self._schedule = schedule
        self._repair = repair
        self._members: dict[str, Member] = {}
        self._pending: list[Frame] = []
        # Connection id -> the pending frames it is not to get. Empty but for publish(exclude=…).
        self._excluded: dict[str, set[Frame]] = {}
        self._history = history
        self._clock = clock
        # The most recent frames. Made with the first: a channel without history has none.
        self._ring: Ring | None = None
        # What came during a repair; and whether what it reads is not enough, so that another one follows.
        self._waiting: list[Publication] = []
        self._is_stale = False

    def __len__(self) -> int:
        """How many members there are."""
        return len(self._members)

    # Publications

    def publish(self, publication: Publication) -> Frame | None:
        """Take what the engine announced. Returns what members will be sent, if that is known by now."""
        if publication.offset == 0:
            frame = self.put_aside(publication)
            if self.position != START:
                # The channel had a history, and the engine has lost it.
                self.verify()
            return frame
        if self.is_repairing:
            self._wait(publication)
            return None
        if self._is_next(publication):
            return self._accept(publication)
        if not self._is_duplicate(publication):
            # It is kept, or it would not have been announced: the repair will find it.
            self.verify()
        return None

    def put_aside(self, publication: Publication, frame: Frame | None = None) -> Frame:
        """Have ``publication`` written with the next flush, wherever it stands. Returns what members will be
        sent."""
        frame = frame or _frame(publication)
        if not self._pending:
            self._schedule(self.flush)
        self._pending.append(frame)
        if publication.exclude is not None:
            self._excluded.setdefault(publication.exclude, set()).add(frame)
        return frame

    def flush(self) -> None:
        """Write what was put aside to every member, each in one batch. Never raises: other feeds wait to be
        flushed, and a member to join or to leave."""
        if not self._pending:
            return
        frames, self._pending = self._pending, []
        excluded, self._excluded = self._excluded, {}
        try:
            self._write(frames, excluded)
        except Exception:
            logger.exception("Could not write %d publications to %r.", len(frames), self.channel)
            if self.position != START:
                self._tell_all_broken()

    # Members

    def join(self, member: Member) -> None:
        """Let ``member`` in. It gets what is published from now on. Joining twice is joining once."""
        self.flush()
        self._members[member.id] = member

    def resume(self, member: Member, since: Position, history: Sequence[Publication] = ()) -> bool:
        """Let ``member`` in and hand it what was published after ``since``, from memory, without a gap.

        :param history: publications as :meth:`remember` took them, for what memory does not hold.
        :return: ``False`` if that does not reach back to ``since``: the history is to be read first.
        :raises Unrecoverable: the position is of another epoch, or of a future that this channel has not had.
        """
        self.flush()
        position = self.position
        if since != START and since.epoch != position.epoch:
            raise Unrecoverable(self.channel, *position)
        missed = position.offset - since.offset
        if missed < 0:
            raise Unrecoverable(self.channel, *position)
        frames = self._ring.newest(missed) if self._ring is not None else []
        if len(frames) < missed:
            first = position.offset - len(frames)
            older = [
                _frame(each)
                for each in history
                if since.offset < each.offset <= first and each.epoch == position.epoch
            ]
            frames = older + frames
        if len(frames) < missed:
            return False
        if frames:
            deliver(self._batch(frames), (member,))
        self._members[member.id] = member
        return True

    def leave(self, member: Member) -> None:
        """Let ``member`` go, after it has been handed everything that was published until now."""
        self.flush()
        self._members.pop(member.id, None)

    # Repair

    def begin(self, position: Position, last_id: str = "") -> None:
        """Go on from where the channel stood when the node subscribed to it, after :meth:`hold`.

        :param last_id: the id of the publication there, if there is one.
        """
        self.position, self.last_id = position, last_id
        self.repaired((), position)

    @property
    def since(self) -> Position:
        """From where a repair reads: one publication further back than needed, to see that it is still the
        one that was delivered, and the engine has not been set back to an earlier state."""
        offset, epoch = self.position
        return Position(offset - 1, epoch) if offset > 0 else START

    def verify(self) -> None:
        """Ask for a repair, unless one is under way."""
        if not self.is_repairing:
            self.is_repairing = True
            self._repair(self)

    def hold(self) -> bool:
        """Let wait what comes, as during a repair, until :meth:`repaired` says how to go on.

        Returns ``False`` if that is so already. What is being read may be older than the reason for this
        call, so another repair follows.
        """
        if self.is_repairing:
            self._is_stale = True
            return False
        self.is_repairing = True
        return True

    def stands_at(self, position: Position, last_id: str) -> bool:
        """Whether the feed is where the engine says that the channel is.

        :param last_id: the id of the publication there; empty if the engine does not have it.
        """
        if position != self.position:
            return False
        # Who has seen nothing yet learns here what to look for after the engine was set back.
        self.last_id = self.last_id or last_id
        return last_id in ("", self.last_id)

    def forget(self) -> None:
        """The channel's history has been removed: nothing of it may be handed to clients that come back."""
        self._ring = None
        if self.hold():
            self._repair(self)

    def trim(self) -> None:
        """Drop what is too old to be handed to clients that come back."""
        if self._ring is not None:
            self._ring.trim()

    def contradicts(self, history: Sequence[Publication], top: Position) -> bool:
        """Whether the engine was set back to an earlier state of the epoch, and maybe went on from there: it
        has nothing, or something else, at our position. Offsets of this epoch mean two things by now.

        :param history: what the channel has kept after :attr:`since`, in order.
        :param top: where the channel stood when that was read.
        """
        offset, epoch = self.position
        if epoch != top.epoch:
            return False
        if top.offset < offset:
            return True
        return bool(self.last_id) and any(
            each.offset == offset and each.id != self.last_id for each in history
        )

    def repaired(self, history: Sequence[Publication], top: Position) -> None:
        """Go on after a repair.

        :param history: what the channel has kept after :attr:`since`, in order.
        :param top: where the channel stood when that was read.
        """
        self.is_repairing = False
        self._catch_up(history, top)
        waiting, self._waiting = self._waiting, []
        is_behind, self._is_stale = self._is_stale, False
        for publication in waiting:
            if self._is_next(publication):
                self._accept(publication)
            elif not self._is_duplicate(publication):
                is_behind = True
        if is_behind:
            # What has just been read may be from before a removal.
            self._ring = None
            self.verify()

    def remember(self, history: Sequence[Publication], top: Position) -> None:
        """Take a piece of history that was read on behalf of a member, up to ``top``: what is new in it is
        news to all members, what is old is kept for others that come back."""
        if self.is_repairing:
            return
        if top.epoch != self.position.epoch:
            self._catch_up([each for each in history if each.offset > self.since.offset], top)
        elif top.offset >= self.position.offset:
            missing = self._missing(history, top)
            if missing is None:
                # It was read for somebody else and need not begin where we stand, or the engine was set back.
                # A repair finds out which, before anybody takes old offsets for new ones.
                self.verify()
                return
            for publication in missing:
                self._accept(publication, is_live=False)
            self._learn(history)
        self._extend_ring(history)

    # Inside

    def _write(self, frames: Sequence[Frame], excluded: Mapping[str, set[Frame]]) -> None:
        batch = self._batch(frames)
        if not excluded:
            deliver(batch, self._members.values())
            return
        deliver(batch, [member for member in self._members.values() if member.id not in excluded])
        for member_id, without in excluded.items():
            rest = [frame for frame in frames if frame not in without]
            if rest and member_id in self._members:
                deliver(self._batch(rest), (self._members[member_id],))

    def _is_next(self, publication: Publication) -> bool:
        offset, epoch = self.position
        return publication.offset == offset + 1 and (publication.epoch == epoch or self.position == START)

    def _is_duplicate(self, publication: Publication) -> bool:
        offset, epoch = self.position
        if publication.offset == offset and self.last_id and publication.id != self.last_id:
            # Another one has the same offset: the engine was set back.
            return False
        return publication.offset <= offset and publication.epoch == epoch

    def _catch_up(self, history: Sequence[Publication], top: Position) -> None:
        missing = self._missing(history, top)
        if missing is None:
            self._break(history, top)
        else:
            for publication in missing:
                self._accept(publication, is_live=False)
            self._learn(history)

    def _learn(self, history: Sequence[Publication]) -> None:
        """Take the id of the publication at our position from what was read, if it is not known."""
        if not self.last_id:
            self.last_id = next((each.id for each in history if each.position == self.position), "")

    def _missing(self, history: Sequence[Publication], top: Position) -> list[Publication] | None:
        """What of ``history`` comes after our position; ``None`` if that does not lead up to ``top``."""
        offset, epoch = self.position
        if (epoch != top.epoch and self.position != START) or self.contradicts(history, top):
            return None
        missing = [publication for publication in history if publication.offset > offset]
        wanted = range(offset + 1, top.offset + 1)
        return missing if [each.offset for each in missing] == list(wanted) else None

    def _break(self, history: Sequence[Publication], top: Position) -> None:
        self.flush()
        self.position = top
        self._ring = None
        self.last_id = history[-1].id if history and history[-1].position == top else ""
        self._tell_all_broken()

    def _tell_all_broken(self) -> None:
        for member in self._members.values():
            _tell_broken(member, self.channel, self.position)

    def _accept(self, publication: Publication, *, is_live: bool = True) -> Frame:
        self.position = publication.position
        self.last_id = publication.id
        frame = _frame(publication)
        self._recent().append(publication, frame, is_live=is_live)
        return self.put_aside(publication, frame)

    def _recent(self) -> Ring:
        if self._ring is None:
            self._ring = Ring(self._history, self._clock)
        return self._ring

    def _batch(self, frames: Sequence[Frame]) -> Batch:
        return Batch(frames, self.channel, has_positions=self.position != START)

    def _wait(self, publication: Publication) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(publication)
        else:
            self._is_stale = True

    def _extend_ring(self, history: Sequence[Publication]) -> None:
        """Put in front of the ring what belongs there, as far as there is room."""
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
        ring.prepend(older, _frame)


def _frame(publication: Publication) -> Frame:
    return Frame(publication.kind, publication.data, publication)
