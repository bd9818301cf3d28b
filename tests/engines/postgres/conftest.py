"""Fixtures of the tests of the PostgreSQL engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from hubbub.engines.postgres import PostgresEngine
from hubbub.testing.engine_contract import Collector
from tests.engines.postgres.nodes import started


@pytest.fixture
async def other(postgres_url: str) -> AsyncIterator[Any]:
    """A connection of another client of the database."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@pytest.fixture
async def node(postgres_url: str, namespace: str) -> AsyncIterator[tuple[PostgresEngine, Collector]]:
    async with started(postgres_url, namespace) as node:
        yield node
