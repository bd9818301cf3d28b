"""Refusals: exceptions before the answer of a door, as statuses that are the same on all doors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from hubbub.channels.access import Access, NeedsConnection, Target
from hubbub.channels.failures import failure_of
from hubbub.core.publication import check_channel
from hubbub.exceptions import InvalidChannel


@contextmanager
def refusals() -> Iterator[None]:
    """Turn exceptions into an ``HTTPException``, which FastAPI answers.

    Exceptions of the application's own classes are left to its exception handlers, and errors of the server
    to its log.
    """
    try:
        yield
    except HTTPException:
        raise
    except NeedsConnection as exc:
        raise HTTPException(405, str(exc)) from exc
    except Exception as exc:
        failure = failure_of(exc)
        if failure.is_internal:
            raise
        refusal = failure.as_response()
    else:
        return
    # Not from within: an exception of validation has the path and the line of a handler in its text.
    raise refusal


def find_target(access: Access, name: str) -> Target:
    """Return the channel with this name.

    :raises HTTPException: it is not declared (404), or no channel can have this name (422).
    """
    try:
        check_channel(name)
    except InvalidChannel as exc:
        raise HTTPException(422, str(exc)) from exc
    target = access.find(name)
    if target is None:
        raise HTTPException(404, "there is no such channel")
    return target
