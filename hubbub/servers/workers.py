"""Workers: whether this process is the only one that serves its app.

The workers of a server share its listening socket: the parent binds it and passes it to each worker before
the worker starts the app, as a reloader does to its one child. A server without workers binds its socket
after the app has started. So the sockets that are bound when a hub starts identify the server, whichever it
is. The first worker locks a file that is named after the socket's address; the other workers find it locked.

This works on Linux and macOS. On Windows, which has neither such locks nor a list of a process's files, and
among replicas on other machines or other ports, other processes are not detected.
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

logger = logging.getLogger(__name__)

#: Advice for a hub that reaches only one process, in an app that several processes serve.
ADVICE = (
    "Most clients would not receive each other's messages. Give Hub() the URL of an engine that reaches "
    "across processes, such as sqlite:///hub.db, or run one worker."
)

#: Seconds that a starting worker waits for an older one to end, as the old workers do after a reload
#: (gunicorn's HUP).
PATIENCE = 20.0

#: Seconds after its start during which a worker is not expected to end: waiting for it is useless.
NEW = 10.0

_POLL = 0.1


class _LockFile:
    """A file that one process at a time locks, on behalf of any number of hubs in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = self._open()
        #: Number of hubs of this process that hold the lock or wait for it.
        self.hubs = 0

    def _open(self) -> int:
        # The flags and the mode refuse a link or a file that another user has put there.
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def try_lock(self) -> bool:
        """Return whether this process has the lock, which forked processes do not inherit."""
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return False
            if self._is_in_place():
                os.utime(self._descriptor)
                return True
            # The previous holder has removed this file; other processes lock the new one in its place.
            removed, self._descriptor = self._descriptor, self._open()
            os.close(removed)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    @property
    def age(self) -> float:
        """Seconds since a process acquired the lock."""
        return time.time() - os.fstat(self._descriptor).st_mtime

    def close(self, *, remove: bool) -> None:
        """Release the lock: closing a descriptor ends all locks that this process has on the file."""
        if remove:
            with suppress(OSError):
                self.path.unlink()
        os.close(self._descriptor)


# Keyed by process id and path: a forked child inherits the descriptors, but not the locks.
_lock_files: dict[tuple[int, Path], _LockFile] = {}


@asynccontextmanager
async def the_only_worker() -> AsyncIterator[None]:
    """Hold the locks that only one worker of this process's server can hold.

    :raises InvalidURL: another worker holds one, and does not release it within ``PATIENCE`` seconds.
    """
    async with AsyncExitStack() as stack:
        for address in bound_addresses():
            await stack.enter_async_context(_locked(lock_file(address)))
        yield


def bound_addresses() -> list[str]:
    """Return the addresses of this process's stream sockets that are bound and not connected."""
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
    """Return a name of the address that ``sock`` is bound to, or an empty string if it is not bound."""
    name = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return f"{name[0]}:{name[1]}" if name[1] else ""
    if sock.family == socket.AF_UNIX and name:
        # The inode, because containers with separate file systems may use the same path.
        return f"unix:{os.fstat(sock.fileno()).st_ino}:{name!r}"
    return ""


def lock_file(address: str) -> Path:
    """Return the path of the lock file for a socket that is bound to ``address``."""
    # /dev/shm exists even in containers whose file system is otherwise read-only.
    shared_memory = Path("/dev/shm")
    folder = shared_memory if os.access(shared_memory, os.W_OK) else Path(tempfile.gettempdir())
    return folder / f"hubbub-{os.getuid()}-{sha256(address.encode()).hexdigest()[:16]}.lock"


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    key = (os.getpid(), path)
    try:
        file = _lock_files[key] = _lock_files.get(key) or _LockFile(path)
    except OSError as exc:
        logger.warning("Cannot detect other workers of this app (%s); starting without the check.", exc)
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
    """Wait for the lock. Returns whether this process has it: the file system may not support locks."""
    deadline = time.monotonic() + PATIENCE
    is_logged = False
    while True:
        try:
            if file.try_lock():
                return True
        except OSError as exc:
            logger.warning("Cannot detect other workers of this app (%s); starting without the check.", exc)
            return False
        if 0 <= file.age < NEW or time.monotonic() >= deadline:
            raise InvalidURL(
                "Expected one process for a hub on memory://, which reaches only one process, but another "
                f"worker of this server has started such a hub. {ADVICE} If the workers do not share any "
                'channels, use Hub("memory://?alone=yes").'
            )
        if not is_logged:
            is_logged = True
            logger.warning(
                "Another worker of this server has a hub on memory://, which reaches only one process; "
                "waiting up to %g s for it to stop.",
                PATIENCE,
            )
        await asyncio.sleep(_POLL)
