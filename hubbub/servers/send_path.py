"""The path on which messages leave for clients: named in the log, once in a process."""

from __future__ import annotations

import logging

# Where uvicorn tells what it does, at a level that its users see.
logger = logging.getLogger("uvicorn.error")

_announced: set[str] = set()


def announce(line: str) -> None:
    """Log ``line`` unless it has been logged before.

    :param line: of the application and its server, with nothing in it that a client sent.
    """
    if line not in _announced:
        _announced.add(line)
        logger.info(line)
