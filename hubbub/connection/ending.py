"""The end of a connection: its code and reason, for the task that receives from the client."""

from __future__ import annotations


class Ending:
    """Whether a connection has ended, and how. It ends once.

    Subclasses wait for the client, and override :meth:`_stop`.
    """

    __slots__ = ("client_left", "ended")

    def __init__(self) -> None:
        #: The code and reason with which the connection ended; ``None`` while it is open.
        self.ended: tuple[int, str] | None = None
        #: Whether the client has ended the connection, so that nothing can be sent to it any more.
        self.client_left = False

    def end(self, code: int, reason: str) -> None:
        """Wait for the client no more. Only the first call counts."""
        if self.ended is None:
            self.ended = (code, reason)
            self._stop()

    def _stop(self) -> None:
        """Wake the task that waits for the client."""
