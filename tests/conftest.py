"""Fixtures that many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.postgres import postgres, postgres_url
from tests.servers import SERVERS

__all__ = ["log", "postgres", "postgres_url", "server_name"]


@pytest.fixture(params=SERVERS)
def server_name(request: pytest.FixtureRequest) -> str:
    """Each of the servers that Hubbub works on."""
    name: str = request.param
    return name


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a server's output goes."""
    return tmp_path / "server.log"
