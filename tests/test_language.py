"""Prose has nouns for subjects: *client*, *connection* or *node*, where a vague word could stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.uvicorn_process import ROOT

VAGUE = re.compile(r"\b(?:nobody|somebody|everybody|anybody|whoever|whatever|anew)\b", re.IGNORECASE)

PATHS = [*ROOT.glob("*.md"), *(ROOT / folder for folder in ("hubbub", "docs", "examples"))]
FILES = [file for path in PATHS for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
TEXTS = [file for file in FILES if file.suffix in (".py", ".md", ".html", ".lua", ".sql", ".svg")]


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_text_has_no_vague_subjects(file: Path) -> None:
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    assert [f"{number}: {line}" for number, line in lines if VAGUE.search(line)] == []
