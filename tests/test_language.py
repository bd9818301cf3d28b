"""Prose has nouns for subjects: *client*, *connection* or *node*, where a vague word could stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.uvicorn_process import ROOT

VAGUE = "nobody|somebody|everybody|anybody|whoever|whatever|anew"
#: In code, where no sentence is about people, these stand in the place of a noun too.
VAGUE_IN_CODE = f"{VAGUE}|who|whom|what"

PATHS = [*ROOT.glob("*.md"), *(ROOT / folder for folder in ("hubbub", "docs", "examples"))]
FILES = [file for path in PATHS for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
TEXTS = [file for file in FILES if file.suffix in (".py", ".md", ".html", ".lua", ".sql", ".svg")]


def is_code_of_the_package(file: Path) -> bool:
    return file.is_relative_to(ROOT / "hubbub") and file.suffix in (".py", ".lua", ".sql")


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_text_has_no_vague_subjects(file: Path) -> None:
    words = VAGUE_IN_CODE if is_code_of_the_package(file) else VAGUE
    vague = re.compile(rf"\b(?:{words})\b", re.IGNORECASE)
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    assert [f"{number}: {line}" for number, line in lines if vague.search(line)] == []
