"""Threads that wait for an event loop."""

from __future__ import annotations

import asyncio


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that is running in this thread, if there is one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def refuse_event_loop(call: str, instead: str) -> None:
    """Check that this thread may wait.

    :param call: what would wait, for the error message.
    :param instead: what to use on an event loop.
    :raises RuntimeError: an event loop is running in this thread, and would stand still meanwhile.
    """
    if running_loop() is not None:
        raise RuntimeError(
            f"Expected {call} in a thread without an event loop, but one is running in this thread, and "
            f"would stand still meanwhile. Use {instead}."
        )
