"""Threads: a check that a thread has no event loop, which a wait would block."""

from __future__ import annotations

import asyncio


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that is running in this thread, or ``None``."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def refuse_event_loop(call: str, instead: str) -> None:
    """Check that this thread may wait.

    :param call: the call that waits, for the error message.
    :param instead: the call to use on an event loop, for the error message.
    :raises RuntimeError: an event loop is running in this thread, and would be blocked.
    """
    if running_loop() is not None:
        raise RuntimeError(
            f"Expected {call} in a thread without an event loop, but got a call in a thread whose event loop "
            f"it would block. Use {instead}."
        )
