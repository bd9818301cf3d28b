"""No fault loses a message silently: two workers, forty clients, four publishers and one fault after another.

After each fault, all clients agree on one order, and each client has every message or was notified of the
loss (see ``ledger.py``). ``--fault-rounds 20`` plays each fault twenty times;
``--fault-seed`` repeats the random choices of a run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import chain

import pytest
import pytest_asyncio

from tests.faults.brokers import PostgresBroker, RedisBroker, SQLiteFile, on_postgres, on_redis, on_sqlite
from tests.faults.catalogue import POSTGRES, REDIS, SQLITE, Fault
from tests.faults.conftest import Report
from tests.faults.trial import Theatre

pytestmark = pytest.mark.asyncio(loop_scope="class")


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def sqlite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Theatre[SQLiteFile]]:
    async with Theatre(lambda: on_sqlite(tmp_path_factory.mktemp("sqlite"))) as theatre:
        yield theatre


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Theatre[RedisBroker]]:
    async with Theatre(lambda: on_redis(tmp_path_factory.mktemp("redis"))) as theatre:
        yield theatre


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Theatre[PostgresBroker]]:
    async with Theatre(lambda: on_postgres(tmp_path_factory.mktemp("postgres"))) as theatre:
        yield theatre


# Classes, so that all faults of an engine run in one process of xdist, on one stage.


class TestSQLite:
    @pytest.mark.parametrize("fault", list(chain(*SQLITE)), ids=str)
    async def test(
        self, fault: Fault[SQLiteFile], sqlite: Theatre[SQLiteFile], fault_seed: str, report: Report
    ) -> None:
        report(await sqlite.play(fault_seed, fault))


class TestRedis:
    @pytest.mark.parametrize("fault", list(chain(*REDIS)), ids=str)
    async def test(
        self, fault: Fault[RedisBroker], redis: Theatre[RedisBroker], fault_seed: str, report: Report
    ) -> None:
        report(await redis.play(fault_seed, fault))


class TestPostgres:
    @pytest.mark.parametrize("fault", list(chain(*POSTGRES)), ids=str)
    async def test(
        self, fault: Fault[PostgresBroker], postgres: Theatre[PostgresBroker], fault_seed: str, report: Report
    ) -> None:
        report(await postgres.play(fault_seed, fault))
