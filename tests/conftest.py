"""Options, the selection of tests, and fixtures for all packages."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest
from hypothesis import HealthCheck, settings

from tests import tiers
from tests.engines.postgres.server import postgres, postgres_url
from tests.engines.redis.server import redis_cluster, redis_server
from tests.uvicorn_process import SERVERS

__all__ = ["log", "postgres", "postgres_url", "server_name"]


# The duration of an example means nothing on a busy machine.
settings.register_profile("all", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("all"), max_examples=25)


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here and not beside the tests: pytest reads options before it looks into packages.
    group = parser.getgroup("tiers", "which tests run")
    group.addoption("--fast", action="store_true", help="only tests without servers, processes and browsers")
    group.addoption("--benchmarks", action="store_true", help="also tests that run the load generator")
    group = parser.getgroup("faults", "fault suite (tests/faults)")
    group.addoption("--fault-rounds", type=int, default=1, metavar="N", help="play each fault N times")
    group.addoption("--fault-seed", metavar="TEXT", help="seed of all random choices; default: a new one")
    group.addoption(
        "--soak",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="duration of random faults on each engine",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Before the modules of tests are imported, which take their settings from the profile.
    settings.load_profile("fast" if config.option.fast else "all")


# Before -m selects by markers.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out: frozenset[str] = frozenset() if config.option.benchmarks else frozenset({"benchmark"})
    if config.option.fast:
        left_out = tiers.NOT_FAST
    selected: list[pytest.Item] = []
    deselected: list[pytest.Item] = []
    for item in items:
        if isinstance(item, pytest.Function):
            for marker in tiers.needs(item):
                item.add_marker(marker)
        is_left_out = any(marker.name in left_out for marker in item.iter_markers())
        (deselected if is_left_out else selected).append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
    # Modules that start servers take longest and run first, so that no process of xdist is idle at the end.
    starting = {
        item.path for item in selected if any(each.name in tiers.NOT_FAST for each in item.iter_markers())
    }
    items[:] = sorted(selected, key=lambda item: item.path not in starting)


def pytest_sessionstart(session: pytest.Session) -> None:
    # xdist's controller starts the processes that run the tests.
    if session.config.option.fast and (
        not session.config.option.numprocesses or "PYTEST_XDIST_WORKER" in os.environ
    ):
        tiers.forbid_processes()


def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection, which would take fifty times as long."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _leftovers() -> Iterator[None]:
    """Collect a leftover socket or task within the test that left it, so that this test fails."""
    yield
    gc.collect()


@pytest.fixture(params=SERVERS)
def server_name(request: pytest.FixtureRequest) -> str:
    """Return each of the servers that Hubbub supports."""
    name: str = request.param
    return name


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the file for the output of a server."""
    return tmp_path / "server.log"


@pytest.fixture
def namespace() -> str:
    """Return a namespace of the test's own on a server that tests share."""
    return f"test-{token_hex(4)}"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Start a Redis server for all tests."""
    if url := os.environ.get("HUBBUB_TEST_REDIS_URL"):
        yield url
    else:
        with redis_server() as server:
            yield server.url


@pytest.fixture(scope="session")
def redis_cluster_url() -> Iterator[str]:
    """Start a Redis cluster for all tests."""
    with redis_cluster() as servers:
        yield f"redis+cluster://127.0.0.1:{servers[-1].port}"


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def engine_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of each engine that several processes can share."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hub.db'}"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
