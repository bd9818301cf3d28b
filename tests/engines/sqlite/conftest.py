"""Fixtures of the tests of the SQLite engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.sqlite.disk import Disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.db"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)
