"""The clock of the testing kit, for Hubbub's own tests."""

from __future__ import annotations

from hubbub.testing.clock import TURNS, FakeClock

__all__ = ["TURNS", "FakeClock"]
