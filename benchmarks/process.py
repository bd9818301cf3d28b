"""Processes that a run starts: each on a CPU of its own, and none outlives the run."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # of prctl(2)


class TooFewCores(Exception):
    """There are not two CPUs for the server and for the load."""


def cores() -> tuple[int, int]:
    """A CPU for the server and one for the load: of different physical cores, if this process may use such.

    :raises TooFewCores: this process may use only one.
    """
    server, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise TooFewCores("Expected two CPUs, one for the server and one for the load, but there is one.")
    return server, next((core for core in others if core not in siblings(server)), others[0])


def siblings(core: int) -> set[int]:
    """The CPUs that are threads of the same physical core as ``core``, itself included."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    found = {core}
    for part in path.read_text().split(",") if path.exists() else ():
        first, _, last = part.strip().partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


@contextmanager
def start(
    command: Sequence[str], core: int, user: str = "", **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run ``command`` on CPU ``core`` for the length of a block, then kill it and its processes.

    :param user: the user to run it as, if not this process's.
    :param options: of ``subprocess.Popen``.
    """
    # By way of this module as a program, for Popen's preexec_fn is not for processes with threads. In a group
    # of its own, Ctrl+C does not reach it, but only this process, which then kills it.
    confined = [sys.executable, "-S", "-E", __file__, str(core), user, *command]
    with subprocess.Popen(confined, text=True, process_group=0, **options) as process:
        try:
            yield process
        finally:
            # The guard kills the workers of one that has ended by itself.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _become(core: int, user: str, command: list[str]) -> None:
    os.sched_setaffinity(0, {core})
    # Thousands of connections need as many open files: the usual limit of 1,024 may be raised.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if user:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    # As the same user: the kernel does not let the end of another user's process send a signal.
    _guard()
    # If the process that has started this one ends, even by SIGKILL, this one ends too. Changing the user
    # would forget that.
    _end_with_parent(signal.SIGKILL)
    os.execvp(command[0], command)


def _guard() -> None:
    """Start a process that waits for the end of this one, and then kills the rest of its group.

    Servers such as granian start workers, which SIGKILL leaves behind.
    """
    server = os.getpid()
    if os.fork():
        return
    # The pipes of the server end with the server.
    os.closerange(0, 1024)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _end_with_parent(signal.SIGTERM)
    # The server may have ended before that.
    while os.getppid() == server:
        signal.sigwait({signal.SIGTERM})
    os.killpg(0, signal.SIGKILL)


def _end_with_parent(sig: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, sig)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
