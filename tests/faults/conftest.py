"""The options of the fault suite, and its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from secrets import token_hex
from typing import Any, TypeAlias

import pytest

from tests.faults.ledger import Counts

#: Takes the counts of a fault.
Report: TypeAlias = Callable[[Counts], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault_round" in metafunc.fixturenames:
        metafunc.parametrize("fault_round", range(metafunc.config.getoption("fault_rounds")))


@pytest.fixture(scope="session")
def session_seed(pytestconfig: pytest.Config) -> str:
    return pytestconfig.getoption("fault_seed") or token_hex(4)


@pytest.fixture
def fault_seed(session_seed: str, fault_round: int) -> str:
    """Return the seed of all random choices of this round."""
    print(f"--fault-seed {session_seed}, round {fault_round}")
    return f"{session_seed} {fault_round}"


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    """Return a function that prints counts and adds them to the summary."""

    def report(counts: Counts) -> None:
        print(counts)
        record_property("counts", asdict(counts))

    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    total, times = Counts(), 0
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "counts":
                total += Counts(**value)
                times += 1
    if times:
        terminalreporter.section("Faults")
        terminalreporter.line(f"{times} played: {total}")
