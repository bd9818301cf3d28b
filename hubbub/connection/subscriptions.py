"""The channels of one connection."""

from __future__ import annotations

import asyncio
from typing import get_args

from hubbub.connection.ending import Ending
from hubbub.core.forms import Form
from hubbub.core.publication import START, Position
from hubbub.exceptions import InvalidChannel
from hubbub.node.node import Node
from hubbub.node.presence import encode_entry
from hubbub.node.snapshots import Snapshot
from hubbub.transports.writer import Writer
from hubbub.types import JoinLeave, PresenceEntry


class ConnectionSubscriptions:
    """The channels that one connection has subscribed to, or is about to.

    :param node: the node that has the connection.
    :param ending: knows whether the connection has ended; then it subscribes to nothing more.
    """

    __slots__ = ("_ending", "_forms", "_joining", "_node")

    def __init__(self, node: Node, ending: Ending) -> None:
        self._node = node
        self._ending = ending
        # By channel: the form in which the client gets publications.
        self._forms: dict[str, Form] = {}
        # Channels that a task is subscribing to; set when it is done.
        self._joining: dict[str, asyncio.Event] = {}

    def __contains__(self, channel: str) -> bool:
        return channel in self._forms

    def __len__(self) -> int:
        return len(self._forms)

    async def add(
        self,
        channel: str,
        writer: Writer,
        *,
        entry: bytes | None,
        since: Position | None,
        history: int,
        form: Form,
        snapshot: Snapshot | None = None,
        join_leave: JoinLeave | None,
    ) -> Position:
        """Subscribe to ``channel``; see :meth:`hubbub.Connection.subscribe`.

        :param writer: the connection's, which is the subscriber.
        :param entry: from :func:`presence_entry`.
        :param form: how publications are written to the client.
        :param snapshot: see :meth:`hubbub.node.node.Node.join`.
        """
        while (joining := self._joining.get(channel)) is not None:
            # Another task is subscribing to the channel; if it fails, this one tries.
            await joining.wait()
        if self._ending.ended is not None:
            return START
        if channel in self._forms:
            if self._forms[channel] is not form:
                positions = form.reports_recovery
                raise ValueError(
                    f"Expected positions={not positions} as in the present subscription to {channel!r}, but "
                    f"got {positions!r}. Unsubscribe first."
                )
            return self._node.position(channel)
        self._forms[channel] = form
        joined = self._joining[channel] = asyncio.Event()
        try:
            # Another task may unsubscribe meanwhile, or the block may end.
            return await self._node.join(
                channel,
                writer,
                since,
                history,
                form,
                snapshot=snapshot,
                entry=entry,
                join_leave=join_leave,
                is_wanted=lambda: channel in self._forms,
            )
        except BaseException:
            self._forms.pop(channel, None)
            raise
        finally:
            del self._joining[channel]
            joined.set()

    def remove(self, channel: str, writer: Writer) -> None:
        """Unsubscribe from ``channel``, if the connection has subscribed to it."""
        if self._forms.pop(channel, None) is not None:
            self._node.leave(channel, writer)

    def remove_all(self, writer: Writer) -> None:
        """Unsubscribe from all channels. Nothing is awaited, so that cancellation cannot come in between."""
        for channel in self._forms:
            self._node.leave(channel, writer)
        self._forms.clear()


def presence_entry(
    node: Node, channel: str, connection: str, user: str | None, info: object, join_leave: JoinLeave | None
) -> bytes | None:
    """Return the entry of a connection in the presence of ``channel``; ``None`` if the channel has none.

    :raises InvalidChannel: ``info`` or ``join_leave`` is given for a channel without presence.
    :raises InvalidData: ``info`` cannot be written as JSON, or is too long.
    :raises ValueError: ``join_leave`` is none of its values.
    """
    if join_leave not in (None, *get_args(JoinLeave)):
        raise ValueError(f"Expected join_leave to be one of {get_args(JoinLeave)}, but got {join_leave!r}.")
    if node.has_presence(channel):
        return encode_entry(PresenceEntry(connection, user, info))
    if info is not None or join_leave is not None:
        raise InvalidChannel(
            "Expected info and join_leave only for channels that are declared with presence=True, but "
            f"{channel!r} is not."
        )
    return None
