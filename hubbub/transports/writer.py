"""The seam between a connection and the socket it writes to."""

from __future__ import annotations

from typing import Protocol

from hubbub.core.feed import Member


class Writer(Member, Protocol):
    """The way out to one client, and thereby its membership in feeds.

    :class:`hubbub.transports.websocket.QueuedWriter` works on any server,
    :class:`hubbub.transports.direct.DirectWriter` where the server offers its transport.
    """

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""

    @property
    def dropped(self) -> int:
        """Messages dropped so far because the client was slow."""

    @property
    def is_gone(self) -> bool:
        """Whether nothing that is written can reach the client any more."""

    async def room(self) -> None:
        """Wait until the client has taken so much that there is room for more, or is gone."""

    def end(self, code: int | None, reason: str = "", *, discard: bool = False) -> None:
        """Take nothing more; send what waits (unless ``discard``), then a close frame (unless ``code`` is
        ``None``). Does not wait. Only the first call counts."""

    async def ended(self, timeout: float) -> None:
        """Wait until the close frame is out or the client is gone, for at most ``timeout`` seconds; then
        give up. Nothing of the writer is left when this returns."""

    def stalled(self, now: float) -> float:
        """For how many seconds the client has taken nothing of what is being sent to it."""
