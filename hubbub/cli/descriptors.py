"""File descriptors: raise the limit, and log it when all are in use.

At its limit a process cannot accept connections. uvloop then resets new connections silently; asyncio stops
accepting for a second and logs a traceback each time.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hubbub.core.throttle import Throttle

try:
    import resource
except ImportError:  # Windows has no such limit.
    resource = None  # type: ignore[assignment]

logger = logging.getLogger("uvicorn.error")

#: The limit to set where there is no hard limit: the most that Linux allows by default (``fs.nr_open``).
MOST = 1_048_576

#: Seconds between two checks whether descriptors are left.
INTERVAL = 1.0

#: Error numbers when no descriptors are left in this process, or in the whole system.
EXHAUSTED = (errno.EMFILE, errno.ENFILE)

_throttle = Throttle(30.0)


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard limit, for this process and its child processes."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as exc:
        # macOS has a limit of its own below the hard one.
        logger.debug("Cannot raise the limit of open files, which stays at %d: %s", soft, exc)


@contextmanager
def watch_descriptors() -> Iterator[None]:
    """Log an error, at most twice a minute, while connections are refused for lack of descriptors."""
    timer: asyncio.TimerHandle | None = None
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exc, message = context.get("exception"), context.get("message", "")
        # asyncio reports an error for every connection that the backlog might hold (thousands), and again
        # each time it retries after a second, even if the server has been closed meanwhile. check() logs one
        # line instead.
        if isinstance(exc, OSError) and exc.errno in EXHAUSTED and "accept" in message:
            return
        if isinstance(exc, ValueError) and "_start_serving" in message:
            return
        if before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    def check() -> None:
        nonlocal timer
        timer = loop.call_later(INTERVAL, check)
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as exc:
            if exc.errno in EXHAUSTED and (more := _throttle.admit()) is not None:
                logger.error("%s%s", _exhausted(exc), more)

    loop.set_exception_handler(on_exception)
    check()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        # The handler stays: asyncio's last retries come after the application has ended.


def _exhausted(exc: OSError) -> str:
    if exc.errno == errno.EMFILE and resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"Refusing new connections: this process has used up its {limit} file descriptors. Raise its "
            "hard limit: ulimit -Hn, LimitNOFILE= of systemd, or --ulimit nofile= of Docker."
        )
    return f"Refusing new connections: {exc.strerror}."
