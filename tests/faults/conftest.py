"""What the fault suite asks of pytest, and what it reports at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from secrets import token_hex
from typing import Any, TypeAlias

import pytest

from tests.faults.ledger import Counts

#: Takes what happened during a fault.
Report: TypeAlias = Callable[[Counts], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault_round" in metafunc.fixturenames:
        metafunc.parametrize("fault_round", range(metafunc.config.getoption("fault_rounds")))


@pytest.fixture
def fault_seed(pytestconfig: pytest.Config, fault_round: int) -> str:
    """Of what is left to chance in one fault."""
    seed = pytestconfig.getoption("fault_seed") or token_hex(4)
    return f"{seed}-{fault_round}"


@pytest.fixture
def report(fault_seed: str, record_property: Callable[[str, object], None]) -> Report:
    """Prints the counts, and has them added up in the end."""

    def report(counts: Counts) -> None:
        print(f"seed {fault_seed}: {counts}")
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
