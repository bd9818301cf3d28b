"""Random faults, up to three at once, for ``--soak SECONDS``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.faults.brokers import on_postgres, on_redis, on_sqlite
from tests.faults.catalogue import POSTGRES, REDIS, SQLITE, Fault, Groups
from tests.faults.conftest import Report
from tests.faults.ledger import Counts
from tests.faults.stage import Stage
from tests.faults.trial import Theatre

#: Builds a stage from the folder of its log and the number of workers.
Build = Callable[[Path, int], AbstractAsyncContextManager[tuple[Stage, Any]]]

ENGINES: dict[str, tuple[Build, Groups]] = {
    "sqlite": (on_sqlite, SQLITE),
    "redis": (on_redis, REDIS),
    "postgres": (on_postgres, POSTGRES),
}


def drawn(groups: Groups, random: Random) -> list[Fault[Any]]:
    """Return one fault from each of some groups."""
    faults = [random.choice(group) for group in random.sample(groups, random.randint(1, len(groups)))]
    alone = [fault for fault in faults if fault.is_alone]
    return alone[:1] or faults


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.timeout(0)
async def test_soak(
    engine: str, pytestconfig: pytest.Config, tmp_path: Path, fault_seed: str, report: Report
) -> None:
    seconds: float = pytestconfig.getoption("soak")
    if not seconds:
        pytest.skip("runs for --soak SECONDS only")
    build, groups = ENGINES[engine]
    random = Random(fault_seed)
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    total = Counts()
    # One stage with three workers until the end.
    async with Theatre(lambda: build(tmp_path, 3)) as theatre:
        while loop.time() < end:
            faults = drawn(groups, random)
            print(*faults, flush=True)
            total += await theatre.play(f"{random.random()}", *faults)
    report(total)
