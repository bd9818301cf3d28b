"""Requests that get no answer in time, without a server."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import pytest

from hubbub.engines.postgres import requests as module
from hubbub.engines.postgres.address import Address
from hubbub.engines.postgres.requests import Requests
from hubbub.exceptions import EngineUnavailable


class Silent:
    """Connections to a server that answers nothing, not even that it cancels a statement."""

    async def run(self, request: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise TimeoutError from None


def requests(error: str = "", *, is_connected: bool = True) -> Requests:
    reconnector: Any = SimpleNamespace(is_connected=asyncio.Event(), error=error)
    if is_connected:
        reconnector.is_connected.set()
    connections: Any = Silent()
    address = Address("postgresql://user:secret@host/database")
    return Requests(address, connections, reconnector, lambda: None, lambda: None)


@pytest.mark.parametrize(
    ("error", "is_connected", "message"),
    [
        ("", True, "no answer within"),
        (
            "Lost PostgreSQL at host (connection reset).",
            False,
            r"^Lost PostgreSQL at host \(connection reset",
        ),
        # The engine is being started or stopped.
        ("", False, "cannot be used: it is not connected"),
    ],
)
async def test_a_late_request_says_why(
    error: str, is_connected: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.01)
    with pytest.raises(EngineUnavailable, match=message) as caught:
        await requests(error, is_connected=is_connected).ask(lambda connection: connection.fetch("SELECT 1"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_request_that_was_given_up_leaves_no_warning(
    is_cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: warnings.append(context))
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 60 if is_cancelled else 0.01)
    asking = asyncio.ensure_future(requests().ask(lambda connection: connection.fetch("SELECT 1")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if is_cancelled:
        asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled() or isinstance(asking.exception(), EngineUnavailable)
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    assert warnings == []
