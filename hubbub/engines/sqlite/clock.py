"""The clock of a file, which all processes share, and which is never set back."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

#: Seconds by which the latest time in the file may be behind: it is not saved with each transaction.
CLOCK_LAG = 1.0


class FileClock:
    """The machine's clock, corrected where it was set back.

    If the machine's clock was ahead and is set back, the times that were saved meanwhile would otherwise lie
    in the future, and rows would expire later by as much.

    :param clock: the machine's clock, in seconds since 1970.
    """

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock

    def now(self) -> float:
        """Return the present time."""
        now, _, _ = self._read()
        return now

    def tick(self) -> float:
        """Return the present time, and save it for all processes; once, at the beginning of a transaction."""
        now, ahead, is_save_due = self._read()
        if is_save_due:
            self._connection.execute("UPDATE hubbub_clock SET latest = ?, ahead = ?", (now, ahead))
        return now

    def _read(self) -> tuple[float, float, bool]:
        """Return the present time, its seconds ahead of the machine's clock, and whether to save both."""
        latest, ahead = self._connection.execute("SELECT latest, ahead FROM hubbub_clock").fetchone()
        clock = self._clock()
        if latest > clock + ahead:
            return latest, latest - clock, True
        return clock + ahead, ahead, clock + ahead >= latest + CLOCK_LAG
