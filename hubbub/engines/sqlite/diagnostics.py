"""Diagnostics of an SQLite file, for ``hubbub doctor``."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from hubbub.engines.diagnostics import Diagnosis

#: The oldest version with all features of our statements (row values).
OLDEST = (3, 15, 0)

#: Network file systems. WAL mode needs shared memory, which processes of different machines do not have.
NETWORK = {
    *("9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3", "smbfs")
}

#: Bytes below which a disk is nearly full.
LEAST_ROOM = 104_857_600


def inspect(path: str) -> Sequence[Diagnosis]:
    """Examine the file, which exists. Blocks on the disk."""
    return [*_version(), *_disk(path), *_contents(path)]


def _version() -> Iterator[Diagnosis]:
    is_ok = sqlite3.sqlite_version_info >= OLDEST
    wanted = ".".join(map(str, OLDEST))
    advice = "" if is_ok else f"Use a Python with SQLite {wanted} or newer."
    yield Diagnosis(is_ok, f"SQLite {sqlite3.sqlite_version}", advice)


def _disk(path: str) -> Iterator[Diagnosis]:
    kind = _file_system(os.path.dirname(path))
    if kind in NETWORK:
        yield Diagnosis(
            False,
            f"{path} is on a network ({kind}), where processes do not see the writes of others",
            "Use a local disk; for several machines use redis:// or postgresql://.",
        )
    else:
        yield Diagnosis(True, f"{path} is on a local disk{f' ({kind})' if kind else ''}, in WAL mode")
    free = shutil.disk_usage(os.path.dirname(path)).free
    if free < LEAST_ROOM:
        yield Diagnosis(
            False,
            f"the disk has {free // 1_048_576} MiB left",
            "Free some space: on a full disk nothing can be published.",
        )


def _file_system(directory: str) -> str:
    """Return the kind of file system of ``directory``; empty where the system does not say (not Linux)."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    directory = os.path.realpath(directory)
    for mount in mounts:
        _, point, name, *_ = mount.split(" ")
        # Spaces and similar characters are written as octal numbers.
        point = point.encode().decode("unicode_escape")
        # Of several file systems mounted at one point, the last one is used.
        if len(point) >= len(best) and os.path.commonpath([point, directory]) == point:
            best, kind = point, name
    return kind


def _contents(path: str) -> Iterator[Diagnosis]:
    with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    others = sorted(name for name in names if not name.startswith(("hubbub_", "sqlite_")))
    if others:
        yield Diagnosis(
            False,
            f"the file also holds tables of another program ({', '.join(others[:5])})",
            "Give Hubbub a file of its own: each of the two programs waits while the other writes.",
        )
