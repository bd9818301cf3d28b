"""The examples of docs/testing.md, with each plugin for pytest that runs async tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from tests.clients import DEADLINE
from tests.uvicorn_process import ROOT

PLUGINS = {
    "anyio": ("-p", "no:asyncio"),
    "pytest-asyncio": (
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "-p",
        "no:anyio",
        "-o",
        "asyncio_mode=auto",
        "-W",
        "ignore::pytest.PytestUnknownMarkWarning",
    ),
}


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize(("file", "count"), [("test_echo.py", 1), ("test_guestbook.py", 6)])
async def test_an_example_passes(file: str, count: int, plugin: str) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-W", "error", *PLUGINS[plugin]]
    words += ["-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", file]
    done = await asyncio.to_thread(
        subprocess.run,
        words,
        cwd=ROOT / "examples",
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} passed" in done.stdout
