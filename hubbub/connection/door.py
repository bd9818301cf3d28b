"""A connection through a door: Hubbub subscribes it to the channel of its URL, and receives for it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from hubbub.connection.connection import Connection
from hubbub.connection.subscriptions import presence_entry
from hubbub.core.publication import Position
from hubbub.node.snapshots import Snapshot
from hubbub.protocols.envelope import DOOR_ENVELOPE
from hubbub.protocols.plain import DOOR_PLAIN
from hubbub.protocols.websocket import WebSocketMessage
from hubbub.types import JoinLeave


class DoorConnection(Connection):
    """A :class:`~hubbub.Connection` that has one channel from its URL.

    Handlers get it as a ``Connection``: they may subscribe it to more channels, and send to it.
    """

    def recheck_with(self, recheck: Callable[[], Awaitable[None]], count: int) -> None:
        """Check the permission of the client again by ``recheck``; see :meth:`hubbub.Hub.recheck`.

        :param count: see :meth:`.handle.Handle.recheck_with`.
        """
        self._handle.recheck_with(recheck, count)

    # Subscription

    async def join(
        self,
        channel: str,
        *,
        since: Position | None,
        history: int,
        positions: bool,
        snapshot: Snapshot | None,
        info: object,
        join_leave: JoinLeave | None,
    ) -> Position:
        """Subscribe to the channel of the URL; see :meth:`hubbub.Connection.subscribe`.

        :param positions: whether publications come in envelopes.
        :param snapshot: reads the state with which the client begins.
        """
        # Presence is the channel's property here, not the caller's wish.
        shown = info if self._node.has_presence(channel) else None
        entry = presence_entry(self._node, channel, self.id, self.user, shown, join_leave)
        return await self._subscriptions.add(
            channel,
            self._entered(),
            entry=entry,
            since=since,
            history=history,
            form=DOOR_ENVELOPE if positions else DOOR_PLAIN,
            snapshot=snapshot,
            join_leave=join_leave,
        )

    def messages(self) -> AsyncIterator[str | bytes]:
        """Yield messages as they are, until the client leaves and all its messages are handled."""
        return self._iterate(lambda data: data)

    async def send_message(self, data: bytes) -> None:
        """Send JSON; waits while the outbox of a slow client is full, as :meth:`send` does.

        It follows the publications that the client has caused before: a reply does not overtake them.
        """
        self._node.flush()
        await self._write(WebSocketMessage("json", data))

    def send_at_once(self, data: bytes) -> None:
        """Send JSON without waiting."""
        self._entered().send(DOOR_PLAIN.reply(WebSocketMessage("json", data)))

    # Expiry

    def expire_at(self, expires_at: float | None, on_expiring: Callable[[int], object]) -> None:
        """Close the connection with 3005 at this moment; see :meth:`.handle.Handle.expire_at`."""
        self._handle.expire_at(expires_at, on_expiring)

    def seconds_until(self, moment: float | None) -> int | None:
        """Return the whole seconds until ``moment``, which is given in seconds since 1970."""
        return None if moment is None else max(0, math.floor(moment - self._node.wall_clock()))

    # For code that has a WebSocket

    async def send_event(self, event: Any) -> None:
        """Take an event of ASGI, from code that has a ``WebSocket`` for this connection.

        It goes the way of all other messages, so that it does not overtake them.
        """
        match event:
            case {"type": "websocket.send", "text": str(text)}:
                await self.send_text(text)
            case {"type": "websocket.send", "bytes": data} if data is not None:
                await self.send_bytes(data)
            case {"type": "websocket.close"}:
                await self.close(event.get("code", 1000), event.get("reason") or "")
            case _:
                raise RuntimeError(
                    f"Expected handlers to send or to close, but got {event.get('type')!r}: Hubbub accepts "
                    "the socket."
                )
