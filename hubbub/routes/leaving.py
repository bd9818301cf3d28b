"""The end of a client's use of a channel: it has left, or may not stay."""

from __future__ import annotations

import asyncio
import logging

from starlette.exceptions import WebSocketException

from hubbub.channels.access import Access, Target
from hubbub.channels.current import Client
from hubbub.channels.failures import failure_of
from hubbub.codes import CloseCode

logger = logging.getLogger(__name__)

#: Seconds that handlers have which are called for a client that has left.
LEAVE_TIMEOUT = 30.0


async def left(access: Access, client: Client, target: Target) -> None:
    """Call the handlers for a client that has left, in any way: also in a task that was cancelled."""
    try:
        async with asyncio.timeout(LEAVE_TIMEOUT):
            await access.unsubscribed(client, target)
            await access.disconnected(client)
    except TimeoutError:
        logger.warning(
            "Handlers for a client that has left %r took more than %g s; continuing without them.",
            target.channel.name,
            LEAVE_TIMEOUT,
        )


async def recheck(access: Access, client: Client, target: Target) -> tuple[int, str] | None:
    """Run ``on_subscribe`` again.

    :return: the code and reason that close the client's connection; ``None`` if the client may stay.
    """
    try:
        await access.subscribe(client, target)
    except WebSocketException as exc:
        return exc.code, exc.reason
    except Exception as exc:
        failure = failure_of(exc)
        if failure.is_internal:
            logger.exception("Could not check the permission of a client in %r.", target.channel.name)
        if failure.status >= 500:
            # Not known. The client reconnects, and is checked again.
            return CloseCode.TRY_AGAIN_LATER, failure.message
        return CloseCode.PERMISSION_DENIED, failure.message
    return None
