"""Fixtures that many tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest
from hypothesis import HealthCheck, settings

from tests.engines.postgres.server import postgres, postgres_url
from tests.engines.redis.server import redis_cluster, redis_server
from tests.uvicorn_process import SERVERS

__all__ = ["log", "postgres", "postgres_url", "server_name"]


# How long one example takes says nothing on a busy machine.
settings.register_profile("hubbub", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hubbub")


def pytest_collection_finish() -> None:
    """Leave out of every later collection what is there to stay: with it, one takes fifty times as long."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _leftovers() -> Iterator[None]:
    """A test that leaves a socket or a task behind fails itself, and not the one in which it is collected."""
    yield
    gc.collect()


@pytest.fixture(params=SERVERS)
def server_name(request: pytest.FixtureRequest) -> str:
    """Each of the servers that Hubbub works on."""
    name: str = request.param
    return name


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a server's output goes."""
    return tmp_path / "server.log"


@pytest.fixture
def namespace() -> str:
    """For the test alone, on a server that all tests share."""
    return f"test-{token_hex(4)}"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis server that all tests share."""
    if url := os.environ.get("HUBBUB_TEST_REDIS_URL"):
        yield url
    else:
        with redis_server() as server:
            yield server.url


@pytest.fixture(scope="session")
def redis_cluster_url() -> Iterator[str]:
    """A Redis cluster that all tests share."""
    with redis_cluster() as servers:
        yield f"redis+cluster://127.0.0.1:{servers[-1].port}"


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def engine_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each of the engines that reach across processes."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hub.db'}"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here and not beside the tests: only what pytest finds at once may add options.
    group = parser.getgroup("faults", "fault suite (tests/faults)")
    group.addoption("--fault-rounds", type=int, default=1, metavar="N", help="play each fault N times")
    group.addoption("--fault-seed", metavar="TEXT", help="of what is left to chance; by default a new one")
    group.addoption(
        "--soak", type=float, default=0.0, metavar="SECONDS", help="random faults for so long, on each engine"
    )
