"""Snapshots: the state of a channel, joined to its stream without a gap.

The position of the channel is read first, then the state, and then the subscriber joins from that position.
So everything that was published after the state was read follows. The state may already contain publications
that follow, and misses none that was published after its change was committed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from hubbub.core.forms import Form
from hubbub.core.publication import START, Position
from hubbub.core.subscriber import Start, Subscriber
from hubbub.exceptions import EngineUnavailable, InvalidChannel, Unrecoverable
from hubbub.node.replay import Replay

#: Reads the state of a channel, as JSON.
Snapshot: TypeAlias = Callable[[], Awaitable[bytes]]

#: Times that the state is read, if the channel does not keep the publications of the meantime.
ATTEMPTS = 3


async def join_with_snapshot(
    replay: Replay,
    subscriber: Subscriber,
    form: Form,
    since: Position | None,
    snapshot: Snapshot,
    is_wanted: Callable[[], bool],
) -> Position:
    """Have ``subscriber`` begin with the state of the channel and continue with all publications after it.

    A subscriber whose ``since`` is recovered needs no state, and gets none.

    :param form: how the subscriber is written to; it reports the start.
    :param since: the position from which the subscriber resumes; ``None`` if it is new.
    :param snapshot: called again if the history does not reach back to the position from before the call.
    :param is_wanted: returns whether the subscriber is still to be added.
    :return: the position up to which everything has been written to the subscriber.
    :raises EngineUnavailable: the engine cannot be reached, or the state was out of date each time.
    :raises InvalidChannel: the channel has no history.
    """
    recovered = None
    if since is not None:
        try:
            return await replay.join(subscriber, form, since, 0, is_wanted, reports_recovery=False)
        except Unrecoverable:
            recovered = False
    feed = replay.feed
    for _ in range(ATTEMPTS):
        if not is_wanted():
            break
        # The feed's position is that of the engine, or one before it: then more publications follow.
        position = feed.position
        if position == START:
            raise InvalidChannel(
                f"Expected a channel with a history for a snapshot, but {feed.channel!r} has none."
            )
        state = await snapshot()
        start = Start(position, recovered, state)
        try:
            return await replay.join(
                subscriber, form, position, 0, is_wanted, start=start, reports_recovery=False
            )
        except Unrecoverable:
            # So much was published during the call, or the history was lost: the state is of no use.
            continue
    else:
        raise _out_of_date(feed.channel)
    return feed.position


def _out_of_date(channel: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"Could not join a snapshot of {channel!r} to its stream: {ATTEMPTS} times, the history did not "
        "reach back to the moment before the snapshot was read. Keep more publications: History(size=…)."
    )
