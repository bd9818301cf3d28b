"""Compile the two C programs: the load generator, and the server that shows the limit."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
BUILD = HERE / "build"
PROGRAMS = ("load", "reference")


class BuildFailed(Exception):
    """A program cannot be compiled. The message names the missing tool or has the compiler's errors."""


def build(name: str) -> Path:
    """Compile ``name``.c unless the program is newer, and return its path.

    :raises BuildFailed: this is not Linux, there is no compiler, or it finds errors.
    """
    program, source = BUILD / name, HERE / f"{name}.c"
    newest = max(path.stat().st_mtime for path in (source, HERE / "websocket.h"))
    if program.exists() and program.stat().st_mtime > newest:
        return program
    if sys.platform != "linux":
        raise BuildFailed(f"Expected Linux, whose epoll {source.name} uses, but this is {sys.platform}.")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        raise BuildFailed(
            f"Expected a C compiler, but there is no {compiler[0]}. On Debian: apt-get install gcc libc6-dev"
        )
    BUILD.mkdir(exist_ok=True)
    # Moved to its place when it is whole: another process may be compiling or running the same program.
    with TemporaryDirectory(dir=BUILD) as folder:
        output = Path(folder) / name
        compiled = subprocess.run(
            [*compiler, "-O2", "-Wall", "-Wextra", "-o", str(output), str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        if compiled.returncode:
            raise BuildFailed(f"{source.name} does not compile:\n{compiled.stderr.strip()}")
        output.replace(program)
    return program
