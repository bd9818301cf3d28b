"""Fixtures of the tests of the Redis engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hubbub.engines import reconnect
from hubbub.engines.redis import connection, connections, supervisor, topology
from tests.engines.redis.server import RedisServer, redis_server


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server for one test alone."""
    with redis_server() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that notices sooner that a server does not answer."""
    for module in (connection, supervisor):
        monkeypatch.setattr(module, "ANSWER_TIMEOUT", 1.0)
    for module in (connection, topology, connections):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT", 1.0)
    monkeypatch.setattr(supervisor, "PING_INTERVAL", 0.25)
    monkeypatch.setattr(reconnect, "RETRY_MAX", 0.5)
