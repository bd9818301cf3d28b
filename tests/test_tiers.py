"""The tier ``--fast`` starts no process, in whichever way a test may try."""

from __future__ import annotations

import subprocess
import sys

from tests.uvicorn_process import ROOT

#: Each line starts a process.
WAYS = [
    "subprocess.run(['true'])",
    "os.system('true')",
    "os.popen('true')",
    "os.posix_spawn('/bin/true', ['true'], {})",
    "os.fork()",
    *(f"multiprocessing.get_context('{name}').Process().start()" for name in ("fork", "spawn", "forkserver")),
]


def test_no_process_can_be_started_once_they_are_forbidden() -> None:
    # In another process, because there is no way back.
    code = "\n".join(
        [
            "import multiprocessing, os, subprocess",
            "from tests.tiers import ProcessStarted, forbid_processes",
            "forbid_processes()",
            *(f"try: {way}; print({way!r})\nexcept ProcessStarted: pass\n" for way in WAYS),
        ]
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.stdout, run.returncode) == ("", 0), run.stderr
