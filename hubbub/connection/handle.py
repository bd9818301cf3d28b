"""A connection as its node and its writer see it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from hubbub.codes import CloseCode, clip_reason
from hubbub.connection.ending import Ending
from hubbub.connection.expiry import Expiry
from hubbub.connection.limits import Limits
from hubbub.core.forms import Form
from hubbub.core.frames import Frame
from hubbub.core.publication import Position
from hubbub.core.subscriber import Start
from hubbub.node.node import Node
from hubbub.transports.writer import Writer

logger = logging.getLogger(__name__)


class Handle:
    """The part of a connection that its node and its writer use.

    It is a :class:`~hubbub.node.node.NodeConnection` and an :class:`~hubbub.transports.writer.Owner`. It does
    not refer to the :class:`~hubbub.connection.connection.Connection`, so that a connection that has ended is
    freed without the cyclic garbage collector.

    :param node: the node that has the connection.
    :param connection_id: unique among all connections of the hub.
    :param ending: of the connection's receiving side, which ends together with the writer.
    :param limits: of the connection.
    """

    __slots__ = (
        "_ending",
        "_expiry",
        "_gone_since",
        "_limits",
        "_node",
        "id",
        "on_recheck",
        "user",
        "writer",
    )

    def __init__(self, node: Node, connection_id: str, ending: Ending, limits: Limits) -> None:
        self.id = connection_id
        self.user: str | None = None
        #: The way out; ``None`` until the socket is accepted.
        self.writer: Writer | None = None
        self._node = node
        self._ending = ending
        self._limits = limits
        # When the writer found the client gone, on the loop's clock; the handler may learn it later.
        self._gone_since: float | None = None
        self._expiry: Expiry | None = None
        #: Checks the permission of the client again, and ends the connection without it. ``None`` for one
        #: that the application has subscribed.
        self.on_recheck: Callable[[], Awaitable[None]] | None = None

    # Expiry

    def expire_at(self, expires_at: float | None, on_expiring: Callable[[int], object] | None = None) -> None:
        """End the connection with 3005 at ``expires_at``. A later call, as by a refresh, counts instead.

        :param expires_at: seconds since 1970; ``None``: the connection does not expire.
        :param on_expiring: called with the seconds that are left, 25 of them before the end; at once, in this
            call, if less is left.
        """
        self._expiry = None if expires_at is None else Expiry(expires_at, on_expiring)
        self._check_expiry()

    # For the node

    @property
    def backlog(self) -> int:
        return self.writer.backlog if self.writer else 0

    @property
    def dropped(self) -> int:
        return self.writer.dropped if self.writer else 0

    def end(self, code: int, reason: str) -> None:
        reason = clip_reason(reason)
        if self.writer is not None:
            self.writer.end(code, reason)
        self._ending.end(code, reason)

    def recheck_with(self, recheck: Callable[[], Awaitable[None]], count: int) -> None:
        """Have ``recheck`` check the permission again; at once, if it may have changed since the first check.

        :param count: of :attr:`.node.Node.rechecks`, from before the first check.
        """
        self.on_recheck = recheck
        self._node.rechecks.catch_up(self, count)

    def release(self) -> None:
        """Give up the callbacks of a connection that has ended: they refer to it."""
        self.on_recheck = self._expiry = None

    async def recheck(self) -> None:
        if self.on_recheck is not None:
            await self.on_recheck()

    def tick(self, now: float) -> None:
        """End a connection that has expired, takes nothing, or that only the writer knows to be lost."""
        self._check_expiry()
        writer = self.writer
        if writer is None or self._ending.ended is not None:
            return
        if (seconds := writer.stalled(now)) > self._limits.send_timeout:
            reason = f"slow: nothing taken for {seconds:.0f} s"
            writer.end(CloseCode.SLOW, reason, discard=True)
            self.slow(reason)
        elif writer.is_gone:
            # The server notifies the handler as soon as all that had arrived is read. Not all servers do so
            # while the client's last bytes are still on their way out.
            self._gone_since = now if self._gone_since is None else self._gone_since
            if now - self._gone_since > self._limits.close_timeout:
                self._ending.client_left = True
                self._ending.end(CloseCode.ABNORMAL, "")

    # For the writer

    def joined(self, channel: str, form: Form, start: Start, missed: Sequence[Frame]) -> None:
        """Write the opening message, if the form has one, then the missed publications."""
        messages = [frame.encoded(form.codec) for frame in missed]
        if (opening := form.opening(channel, start)) is not None:
            messages.insert(0, opening)
        if messages and self.writer is not None:
            self.writer.send(form.reply(*messages))

    def broken(self, channel: str, position: Position) -> bool:
        """End the connection with 3010, so that the client reconnects and starts again."""
        reason = f"insufficient state: {channel!r} continues from {position.offset}"
        self._disconnect(CloseCode.INSUFFICIENT_STATE, reason)
        return True

    def slow(self, reason: str) -> None:
        """End the connection with 3008."""
        self._node.slow_disconnects += 1
        self._disconnect(CloseCode.SLOW, reason)

    # Internal

    def _check_expiry(self) -> None:
        expiry = self._expiry
        if expiry is None or self._ending.ended is not None or not expiry.check(self._node.wall_clock()):
            return
        self._disconnect(CloseCode.TOKEN_EXPIRED, "expired")

    def _disconnect(self, code: int, reason: str) -> None:
        # Called in the middle of a feed's flush, during which no subscriber may join or leave: the connection
        # leaves its channels later, when its block ends.
        logger.info("Closing connection %s with %d (%s).", self.id, code, reason)
        self.end(code, reason)
