"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest
from hypothesis import HealthCheck, settings

from tests.engines.postgres.server import postgres, postgres_url
from tests.engines.redis.server import redis_cluster, redis_server
from tests.servers import SERVERS

__all__ = ["log", "postgres", "postgres_url", "server_name"]


# How long one example takes says nothing on a busy machine.
settings.register_profile("hubbub", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hubbub")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a server of their module run in one process, one after another; all others wherever
    there is time."""
    for item in items:
        loop = item.get_closest_marker("asyncio")
        if loop is not None and loop.kwargs.get("loop_scope") == "module":
            # A module that is run on several servers shares each of them.
            server = getattr(item, "callspec", None) and item.callspec.params.get("server")  # type: ignore[attr-defined]
            module = item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group(f"{module} {server or ''}"))


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
