"""Subscribers: the connections, sessions and parts of a node that are in a channel, as a feed sees them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from sys import maxsize
from typing import NamedTuple, Protocol

from hubbub.core.forms import Form
from hubbub.core.frames import Batch, Frame
from hubbub.core.publication import Position

logger = logging.getLogger(__name__)


class Start(NamedTuple):
    """The position at which a subscriber begins.

    :param position: the position before the first publication that it gets.
    :param recovered: whether everything follows that was published after the position that the subscriber
        gave; ``None`` if it gave none.
    :param snapshot: the state of the channel as JSON, read after ``position``; ``None`` without a snapshot.
    """

    position: Position
    recovered: bool | None = None
    snapshot: bytes | None = None


class Subscriber(Protocol):
    """A subscriber of a channel.

    ``write`` takes a batch and returns at once the number of bytes that it has taken. It never waits for the
    client, and it does not change the subscribers of the feed. If it takes fewer bytes than all, or raises
    ``OSError``, ``write_rest`` is called with the batch. ``write`` may be another callable from one moment to
    the next; for a client that keeps up it is the system call itself.
    """

    id: str

    @property
    def write(self) -> Callable[[Batch], int]: ...

    @property
    def recovers_in_pieces(self) -> bool:
        """Whether missed publications may come in several pieces.

        A subscriber that needs all of them in :meth:`joined` recovers only if they fit into the bytes that
        :meth:`ready` returns. Otherwise its :class:`Start` says that it has not recovered.
        """

    def write_rest(self, batch: Batch, taken: int) -> None:
        """Send the bytes of ``batch`` after the first ``taken``, which ``write`` took."""

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        """Write the reply to a subscription, then the first missed publications.

        Called once for each subscription, before anything else of ``channel`` is written. It is called in the
        same step in which the feed adds the subscriber, or writes the next piece to it. It does not change
        the subscribers of the feed. If it raises, the subscriber does not join.

        :param form: how the subscriber is written to.
        :param missed: publications that follow ``start`` without a gap, except for those that the subscriber
            is excluded from. For a subscriber that recovers in pieces there may be more, which are written
            afterwards.
        """

    def broken(self, channel: str, position: Position) -> bool:
        """Take note that publications of ``channel`` are lost to this subscriber.

        It does not change the subscribers of the feed.

        :param position: where the channel continues.
        :return: whether the subscriber stays until it leaves by itself. Otherwise the feed drops it in this
            step, and nothing of the channel follows.
        """

    async def ready(self) -> int:
        """Wait until the client has taken everything that was written before.

        :return: bytes of missed publications that may be written now; 0 if the client takes nothing any more.
        """


def deliver(batch: Batch, subscribers: Iterable[Subscriber]) -> list[Subscriber]:
    """Write ``batch`` to each of ``subscribers``. This is the inner loop of the library.

    :return: the subscribers to which a part of the batch may be lost.
    """
    failed: list[Subscriber] = []
    size = len(batch)
    for subscriber in subscribers:
        try:
            taken = subscriber.write(batch)
        except OSError:
            # The socket has no room, or the client has left.
            taken = 0
        except Exception:
            _log_failure(subscriber)
            failed.append(subscriber)
            continue
        if taken != size:
            try:
                subscriber.write_rest(batch, taken)
            except Exception:
                _log_failure(subscriber)
                failed.append(subscriber)
    return failed


def is_kept_after_break(subscriber: Subscriber, channel: str, position: Position) -> bool:
    """Call ``subscriber.broken`` and return its answer; a subscriber that raises is kept."""
    try:
        return subscriber.broken(channel, position)
    except Exception:
        logger.exception(
            "Could not notify connection %s that publications in %r are lost to it.", subscriber.id, channel
        )
        return True


def _log_failure(subscriber: Subscriber) -> None:
    # A failure of one subscriber, which must not keep the batch from the others.
    logger.exception("Could not write to connection %s.", subscriber.id)


class CallbackSubscriber:
    """A subscriber that is a part of a node, for the channels in which nodes talk to each other.

    :param name: its id among the subscribers of the feed.
    :param on_data: called with each payload.
    :param on_broken: called when publications are lost.
    """

    recovers_in_pieces = True

    def __init__(
        self, name: str, on_data: Callable[[bytes], None], on_broken: Callable[[], None] = lambda: None
    ) -> None:
        self.id = name
        self._on_data = on_data
        self._on_broken = on_broken

    def write(self, batch: Batch) -> int:
        for message in batch.messages:
            if message.publication is not None:
                self._take(message.publication.data)
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("Expected all of a batch to be taken by write().")

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        for frame in missed:
            self._take(frame.publication.data)

    def broken(self, channel: str, position: Position) -> bool:
        self._on_broken()
        return True

    async def ready(self) -> int:
        return maxsize

    def _take(self, data: bytes) -> None:
        try:
            self._on_data(data)
        except Exception:
            # The publications after this one are taken all the same.
            logger.exception("Subscriber %r failed to handle a publication.", self.id)
