"""Compiles the two C programs: the load generator, and the reference that shows the limit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE / "build"


def build(name: str) -> Path:
    """The program made of ``name``.c, compiled if it is older than its sources."""
    program = BUILD / name
    sources = [HERE / f"{name}.c", HERE / "websocket.h"]
    if program.exists() and program.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return program
    if sys.platform != "linux":
        sys.exit(f"Expected Linux, whose epoll {name}.c uses, but this is {sys.platform}.")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        sys.exit(
            "Expected a C compiler for the load generator, but found none. On Debian: apt-get install gcc"
        )
    BUILD.mkdir(exist_ok=True)
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, sources[0]], check=True)
    return program
