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
from math import inf
from typing import Protocol, TypeAlias

from hubbub.core.forms import PLAIN, Form
from hubbub.core.frames import Batch, Frame
from hubbub.core.history import History
from hubbub.core.publication import START, Position, Publication
from hubbub.core.ring import Ring
from hubbub.exceptions import Unrecoverable

logger = logging.getLogger("hubbub.feed")

#: Ask the event loop to call back before it waits for I/O again.
Schedule: TypeAlias = Callable[[Callable[[], None]], object]

#: Publications that may wait for a repair. Beyond that they are dropped and read from history afterwards.
MAX_WAITING = 1000


class Subscriber(Protocol):
    """Someone in a channel.

    ``write`` hands over a batch and returns at once with the number of bytes it has taken: it never waits
    for the client, and it does not change who is in the feed. If it takes fewer than all, or raises
    ``OSError``, the member's ``write_rest`` sees to the rest. It may be a different callable from one
    moment to the next, and for a client that keeps up it is nothing but the system call.

    A member may be in one feed in one form and in another feed in another. The form belongs to the
    membership, so that a delivery is one attribute and one call in every form.
    """

    id: str

    @property
    def write(self) -> Callable[[Batch], int]: ...

    def write_rest(self, batch: Batch, taken: int) -> None:
        """``write`` took only the first ``taken`` bytes of ``batch``."""

    def broken(self, channel: str, position: Position) -> None:
        """What comes next in ``channel`` does not follow what came before: something between the two is lost.
        The channel goes on from ``position``. Does not change who is in the feed."""

    async def ready(self) -> int:
        """Wait until what was written before has been taken. Returns how many bytes of missed publications
        may be written now; 0 if nothing is taken any more."""


def deliver(batch: Batch, members: Iterable[Subscriber]) -> None:
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


def _failed(batch: Batch, member: Subscriber) -> None:
    """Writing to ``member`` raised what it should not: that is one member's trouble, not the channel's."""
    logger.exception("Could not write to connection %s.", member.id)
    publication = batch.frames[-1].publication
    if batch.has_positions and publication is not None:
        # Part of the batch may be lost to it.
        _tell_broken(member, publication.channel, publication.position)


def _tell_broken(member: Subscriber, channel: str, position: Position) -> None:
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
        # By the form in which they are written to: those of one form are handed the same batch.
        self._members: dict[Form, dict[str, Subscriber]] = {}
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
        return sum(map(len, self._members.values()))

    # Publications

    def publish(self, publication: Publication) -> Frame | None:
        """Take what the engine announced. Returns what members will be sent, if that is known by now."""
        if publication.offset == 0:
            frame = self.put_aside(publication)
            if self.position != START:
                # The channel had a history, and the engine has lost it: after what is being read, maybe.
                self._check()
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
        frame = frame or frame_of(publication)
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
        for form, members in self._members.items():
            try:
                self._write(frames, excluded, form, members)
            except Exception:
                logger.exception("Could not write %d publications to %r.", len(frames), self.channel)
                if self.position != START:
                    self._tell_broken(members.values())

    # Members

    def join(self, member: Subscriber, form: Form = PLAIN, opening: Frame | None = None) -> None:
        """Let ``member`` in. It gets what is published from now on. Resume twice is joining once.

        :param form: how it is written to.
        :param opening: what it is told first.
        """
        self.flush()
        if opening is not None:
            deliver(Batch((opening,)), (member,))
        self._add(member, form)

    def resume(
        self,
        member: Subscriber,
        since: Position,
        form: Form = PLAIN,
        history: Sequence[Frame] = (),
        limit: float = inf,
        opening: Frame | None = None,
    ) -> Position | None:
        """Hand ``member`` the next piece of what was published after ``since``, and let it in with the last.
        It is not handed what it was excluded from.

        :param history: frames in order, without a gap, for what memory does not hold.
        :param limit: bytes that the piece may have; one frame is handed over however large it is.
        :param opening: what it is told first.
        :return: the position of the last publication of the piece: the member is in if that is the feed's
            :attr:`position`. ``None`` if neither memory nor ``history`` has what follows ``since``: nothing
            has been handed over, and it is to be read.
        :raises Unrecoverable: the position is of another epoch, or of a future that this channel has not had.
        """
        self.flush()
        frames = self._after(since, history)
        if frames is None:
            return None
        offset, cost = since.offset, 0
        piece = [] if opening is None else [opening]
        for frame in frames:
            assert frame.publication is not None
            encoded = form.encode(frame)
            cost += encoded.cost
            if cost > limit and offset > since.offset:
                break
            offset += 1
            if frame.publication.exclude != member.id:
                piece.append(encoded)
        if piece:
            # As what is sent to one client directly: it was asked whether it has room.
            deliver(Batch(piece), (member,))
        reached = Position(offset, self.position.epoch)
        if reached == self.position:
            self._add(member, form)
        return reached

    def remembers(self, since: Position) -> bool:
        """Whether memory holds what was published after ``since``, which is something."""
        offset, epoch = self.position
        is_of_epoch = since == START or since.epoch == epoch
        return is_of_epoch and offset - len(self._ring or ()) <= since.offset < offset

    def leave(self, member: Subscriber) -> None:
        """Let ``member`` go, after it has been handed everything that was published until now."""
        self.flush()
        self._remove(member)

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
        self._check()

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
        """Take a piece of history that was read on behalf of a member: what is new in it is news to all
        members, what is old is kept for others that come back. If it contradicts what members have been
        handed, the feed repairs first.

        :param history: publications in order, without a gap.
        :param top: where the channel stood when they were read.
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

    # Inside

    def _check(self) -> None:
        """Ask for a repair that reads what is there from now on."""
        if self.hold():
            self._repair(self)

    def _write(
        self,
        frames: Sequence[Frame],
        excluded: Mapping[str, set[Frame]],
        form: Form,
        members: Mapping[str, Subscriber],
    ) -> None:
        batch = self._batch(frames, form)
        if not excluded:
            deliver(batch, members.values())
            return
        deliver(batch, [member for member in members.values() if member.id not in excluded])
        for member_id, without in excluded.items():
            rest = [frame for frame in frames if frame not in without]
            if rest and member_id in members:
                deliver(self._batch(rest, form), (members[member_id],))

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
        for members in self._members.values():
            self._tell_broken(members.values())

    def _tell_broken(self, members: Iterable[Subscriber]) -> None:
        for member in members:
            _tell_broken(member, self.channel, self.position)

    def _accept(self, publication: Publication, *, is_live: bool = True) -> Frame:
        self.position = publication.position
        self.last_id = publication.id
        frame = frame_of(publication)
        self._recent().append(publication, frame, is_live=is_live)
        return self.put_aside(publication, frame)

    def _recent(self) -> Ring:
        if self._ring is None:
            self._ring = Ring(self._history, self._clock)
        return self._ring

    def _batch(self, frames: Sequence[Frame], form: Form) -> Batch:
        return form.batch(frames, self.channel, has_positions=self.position != START)

    def _add(self, member: Subscriber, form: Form) -> None:
        self._remove(member)
        self._members.setdefault(form, {})[member.id] = member

    def _remove(self, member: Subscriber) -> None:
        for form, members in list(self._members.items()):
            members.pop(member.id, None)
            if not members:
                # Nothing is to be encoded in a form that no member has.
                del self._members[form]

    def _after(self, since: Position, history: Sequence[Frame]) -> Iterable[Frame] | None:
        """What follows ``since``, up to our position as far as that is at hand; see :meth:`resume`."""
        offset, epoch = self.position
        if (since != START and since.epoch != epoch) or since.offset > offset:
            raise Unrecoverable(self.channel, *self.position)
        missed = offset - since.offset
        recent = self._ring.newest(missed) if self._ring is not None else ()
        if len(recent) == missed:
            return recent
        first = history[0].publication if history else None
        if first is None or first.epoch != epoch:
            return None
        # There may be more than was asked for on either side.
        skip = since.offset + 1 - first.offset
        if not 0 <= skip < len(history):
            return None
        return history[skip : skip + missed]

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
        ring.prepend(older, frame_of)


def frame_of(publication: Publication) -> Frame:
    return Frame(publication.kind, publication.data, publication)
