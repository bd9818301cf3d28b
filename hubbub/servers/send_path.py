"""The send path, on which messages leave for clients, named in the log.

It is direct where the hub writes to its clients' sockets, and queued where it calls ``websocket.send``.
"""

from __future__ import annotations

import logging

# uvicorn's users see this logger's lines, at its default level too.
logger = logging.getLogger("uvicorn.error")

_logged: set[str] = set()


def log_direct() -> None:
    """Log that the send path is direct."""
    _log_once("Direct path: Hubbub writes to its clients' sockets.")


def log_queued(reason: str) -> None:
    """Log that the send path is queued.

    :param reason: why, as a clause. It must not contain anything that a client sent.
    """
    _log_once(f"Queued path: Hubbub writes to its clients through websocket.send, since {reason}.")


def log_queued_behind(middleware: str) -> None:
    """Log that the send path is queued for connections behind a middleware.

    :param middleware: its qualified name.
    """
    _log_once(f"Queued path behind {middleware}, which wraps send and sees Hubbub's messages to clients.")


def _log_once(line: str) -> None:
    """Log ``line`` unless this process has logged it before."""
    if line not in _logged:
        _logged.add(line)
        logger.info(line)
