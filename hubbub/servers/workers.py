"""Workers: whether this process is the only one that serves its app.

The workers of one server share the socket on which it listens: the server binds it, and passes it on before
they start the app. So does a reloader to its one child. A server that is a process of its own binds its
socket later. So the sockets that are bound when a hub starts tell whose worker this process is, whatever the
server is called. The first worker locks a file that is named after the socket's address; the others find it
locked.

That covers Linux and macOS. Windows has neither the locks nor a list of a process's files; there, and among
replicas on other machines or behind other ports, nothing is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path

from hubbub.exceptions import InvalidURL

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger("hubbub.servers.workers")

#: What to do with a hub that reaches one process only, in an app that several processes serve.
ADVICE = (
    "Most clients would not hear each other. Give Hub() the URL of an engine that reaches across processes, "
    "such as sqlite:///hub.db, or run one worker."
)

#: Seconds that a worker which starts waits for one that has been there before. After a reload (gunicorn's
#: HUP) the old worker is about to leave.
PATIENCE = 20.0

#: A worker that has started less than this many seconds ago is not about to leave.
NEW = 10.0

_POLL = 0.1


class _LockFile:
    """A file that one process at a time has the lock of, on behalf of any number of hubs in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = self._open()
        #: Hubs of this process that have the lock, or wait for it.
        self.hubs = 0

    def _open(self) -> int:
        # Not one that another user has put there, be it a link or a file.
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def try_lock(self) -> bool:
        """Returns whether this process has the lock. What is forked from it does not have it."""
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return False
            if self._is_in_place():
                os.utime(self._descriptor)
                return True
            # The process that had it before has removed it: others lock the one that is there now.
            removed, self._descriptor = self._descriptor, self._open()
            os.close(removed)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    @property
    def age(self) -> float:
        """Seconds since a process got the lock."""
        return time.time() - os.fstat(self._descriptor).st_mtime

    def close(self, *, remove: bool) -> None:
        """Give up the lock. Closing one descriptor of a file ends all locks that a process has on it."""
        if remove:
            with suppress(OSError):
                self.path.unlink()
        os.close(self._descriptor)


# By process and path: a child that is forked inherits the descriptors, but no locks.
_lock_files: dict[tuple[int, Path], _LockFile] = {}


@asynccontextmanager
async def the_only_worker() -> AsyncIterator[None]:
    """A block in which no other worker of this process's server is in such a block.

    :raises InvalidURL: another worker is, and does not leave within ``PATIENCE`` seconds.
    """
    async with AsyncExitStack() as stack:
        for address in bound_addresses():
            await stack.enter_async_context(_locked(_lock_file(address)))
        yield


def bound_addresses() -> list[str]:
    """The addresses of the stream sockets of this process that are bound and not connected."""
    addresses = set()
    for descriptor in _descriptors():
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as sock:
                if sock.type == socket.SOCK_STREAM and not _is_connected(sock):
                    addresses.add(_address(sock))
    return sorted(addresses - {""})


def _descriptors() -> Iterator[int]:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return map(int, os.listdir(folder))
    return iter(())


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _address(sock: socket.socket) -> str:
    """A name for what ``sock`` is bound to, '' if it is not bound."""
    name = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return f"{name[0]}:{name[1]}" if name[1] else ""
    if sock.family == socket.AF_UNIX and name:
        # Containers with directories of their own may have the same path.
        return f"unix:{os.fstat(sock.fileno()).st_ino}:{name!r}"
    return ""


def _lock_file(address: str) -> Path:
    # In a container, where all else may be read-only, there is still this.
    shared_memory = Path("/dev/shm")
    folder = shared_memory if os.access(shared_memory, os.W_OK) else Path(tempfile.gettempdir())
    return folder / f"hubbub-{os.getuid()}-{sha256(address.encode()).hexdigest()[:16]}.lock"


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    key = (os.getpid(), path)
    try:
        file = _lock_files[key] = _lock_files.get(key) or _LockFile(path)
    except OSError as exc:
        logger.warning("Cannot tell whether other workers serve this app: %s.", exc)
        yield
        return
    file.hubs += 1
    has_lock = False
    try:
        has_lock = await _lock(file)
        yield
    finally:
        file.hubs -= 1
        if file.hubs == 0:
            del _lock_files[key]
            file.close(remove=has_lock)


async def _lock(file: _LockFile) -> bool:
    """Returns whether this process has the lock: it may be that there are none."""
    deadline = time.monotonic() + PATIENCE
    has_told = False
    while True:
        try:
            if file.try_lock():
                return True
        except OSError as exc:
            logger.warning("Cannot tell whether other workers serve this app: %s.", exc)
            return False
        if 0 <= file.age < NEW or time.monotonic() >= deadline:
            raise InvalidURL(
                "Expected one process for a hub on memory://, which reaches one process only, but another "
                f"worker of this server has started such a hub. {ADVICE} If the workers have nothing to do "
                'with each other, say so: Hub("memory://?alone=yes").'
            )
        if not has_told:
            has_told = True
            logger.warning(
                "Another worker of this server has a hub on memory://, which reaches one process only. "
                "Waiting up to %g s for it to stop.",
                PATIENCE,
            )
        await asyncio.sleep(_POLL)
