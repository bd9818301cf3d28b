"""Which tests need a server, a process or a browser: read from their code, so that no list has to be kept.

A test needs what it, its fixtures and the functions of ``tests`` that they call start. :func:`needs` follows
the names in their code and finds the markers that pyproject.toml explains. ``--fast`` leaves out tests that
have one of them. Should :func:`needs` have missed something, :func:`forbid_processes` fails the test.
"""

from __future__ import annotations

import multiprocessing.util
import subprocess
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from benchmarks import stores
from tests import browser, commands, uvicorn_process
from tests.engines.postgres import server as postgres_server
from tests.engines.redis import server as redis_server

#: Modules whose tests start nothing, but take seconds.
SLOW = ("test_fanout_properties.py",)
#: Markers that ``--fast`` leaves out.
NOT_FAST = frozenset({"redis", "postgres", "browser", "process", "benchmark", "slow"})

#: Functions and classes that start something, each with its marker.
STARTS: dict[Any, str] = {
    redis_server.RedisServer: "redis",
    redis_server.redis_server: "redis",
    redis_server.redis_cluster: "redis",
    redis_server.redis_sentinel: "redis",
    postgres_server.PostgresServer: "postgres",
    postgres_server.postgres_server: "postgres",
    browser.launch: "browser",
    browser.chromium: "browser",
    uvicorn_process.serve: "process",
    commands.hubbub: "process",
    commands.running: "process",
    stores.store: "process",
    subprocess: "process",
    multiprocessing: "process",
}
#: Attributes of modules, and fixtures that a test may ask for by name.
NAMES = {
    "fork": "process",
    "create_subprocess_exec": "process",
    "redis_url": "redis",
    "redis_cluster_url": "redis",
    "postgres_url": "postgres",
}
#: Values of parametrized tests and fixtures that stand for a server.
VALUES = {**NAMES, "redis": "redis", "postgres": "postgres"}


def needs(item: pytest.Function) -> set[str]:
    """Return the names of the markers that a test needs."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    found = {VALUES[value] for value in values if isinstance(value, str) and value in VALUES}
    found |= {NAMES[name] for name in item.fixturenames if name in NAMES}
    found |= {"slow" for name in SLOW if item.path.name == name}
    seen: set[int] = set()
    found |= _needs(item.function, seen)
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for fixture in definitions:
            found |= _needs(fixture.func, seen)
    return found


def _needs(thing: Any, seen: set[int]) -> set[str]:
    if isinstance(thing, type):
        return set().union(*(_needs(each, seen) for each in vars(thing).values()))
    while hasattr(thing, "__wrapped__"):
        thing = thing.__wrapped__
    function = getattr(thing, "__func__", thing)
    if not isinstance(function, FunctionType) or id(function) in seen:
        return set()
    seen.add(id(function))
    names = list(_names(function.__code__))
    # A name is a global, or an attribute of one of our modules.
    spaces = [function.__globals__]
    spaces += [vars(each) for name in names if _is_ours(each := function.__globals__.get(name), ModuleType)]
    found: set[str] = set()
    for name in names:
        for used in [space[name] for space in spaces if name in space]:
            if marker := _starts(used):
                found.add(marker)
            elif _is_ours(used, FunctionType | type):
                found |= _needs(used, seen)
        if name in NAMES:
            found.add(NAMES[name])
    return found


def _is_ours(thing: Any, kind: Any) -> bool:
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return isinstance(thing, kind) and str(name).startswith(("tests.", "benchmarks."))


def _starts(used: Any) -> str | None:
    try:
        return STARTS.get(used)
    except TypeError:
        # It cannot be hashed.
        return None


def _names(code: CodeType) -> Iterator[str]:
    """The names and strings of a function and of those within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
        elif isinstance(constant, str):
            yield constant


class ProcessStarted(AssertionError):
    """A test that ``--fast`` has selected starts a process, which tests/tiers.py has not seen in its code."""


def forbid_processes() -> None:
    """Refuse to start processes from now on. An audit hook stays until this process ends."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.posix_spawn", "os.system", "os.fork", "os.forkpty"):
            raise ProcessStarted(f"Expected no process with --fast, but got {event}: {arguments[:2]}.")

    def refuse_spawn(*arguments: Any) -> int:
        raise ProcessStarted(f"Expected no process with --fast, but got multiprocessing: {arguments[:2]}.")

    sys.addaudithook(refuse)
    # How multiprocessing starts a process, except by a fork. It raises no event.
    multiprocessing.util.spawnv_passfds = refuse_spawn  # type: ignore[assignment]
