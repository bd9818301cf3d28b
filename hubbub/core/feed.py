"""A feed: one channel on this node. Who is in it, and what they have yet to be sent.

Publishing to a feed writes to nobody. It puts the publication aside and asks, once, to be flushed at the
end of the current turn of the event loop; the flush then writes everything that was put aside to each
member in one go. Under load the batches grow by themselves, and when idle nothing is delayed.

What makes that safe is one rule: **membership changes flush first.** Whoever joins gets nothing that was
published before they came; whoever leaves has been handed everything that was published before they left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from hubbub.core.frames import Batch, Frame
from hubbub.core.publication import Publication

logger = logging.getLogger("hubbub.feed")

#: Ask the event loop to call back before it waits for I/O again.
Schedule: TypeAlias = Callable[[Callable[[], None]], object]


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
            # write() raises nothing else; should it ever, it is one member's trouble, not the channel's.
            logger.exception("Could not write to connection %s.", member.id)
            continue
        if taken != size:
            member.write_rest(batch, taken)


class Feed:
    """One channel on this node.

    :param channel: the channel's name.
    :param schedule: called with :meth:`flush` when there is something to flush.
    """

    __slots__ = ("_excluded", "_members", "_pending", "_schedule", "channel")

    def __init__(self, channel: str, schedule: Schedule) -> None:
        self.channel = channel
        self._schedule = schedule
        self._members: dict[str, Member] = {}
        self._pending: list[Frame] = []
        # Connection id -> the pending frames it is not to get. Empty but for publish(exclude=…).
        self._excluded: dict[str, set[Frame]] = {}

    def __len__(self) -> int:
        """How many members there are."""
        return len(self._members)

    def publish(self, publication: Publication) -> Frame:
        """Put ``publication`` aside for everyone who is a member now; returns what they will be sent."""
        frame = Frame(publication.kind, publication.data)
        if not self._pending:
            self._schedule(self.flush)
        self._pending.append(frame)
        if publication.exclude is not None:
            self._excluded.setdefault(publication.exclude, set()).add(frame)
        return frame

    def join(self, member: Member) -> None:
        """Let ``member`` in. It gets what is published from now on. Joining twice is joining once."""
        self.flush()
        self._members[member.id] = member

    def leave(self, member: Member) -> None:
        """Let ``member`` go, after it has been handed everything that was published until now."""
        self.flush()
        self._members.pop(member.id, None)

    def flush(self) -> None:
        """Write what was put aside to every member, each in one batch."""
        if not self._pending:
            return
        frames, self._pending = self._pending, []
        excluded, self._excluded = self._excluded, {}
        batch = Batch(frames, self.channel)
        if not excluded:
            deliver(batch, self._members.values())
            return
        deliver(batch, [member for member in self._members.values() if member.id not in excluded])
        for member_id, without in excluded.items():
            rest = [frame for frame in frames if frame not in without]
            if rest and member_id in self._members:
                deliver(Batch(rest, self.channel), (self._members[member_id],))
