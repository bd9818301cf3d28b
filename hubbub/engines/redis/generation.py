"""The generation of a server, which changes when the server may have lost data.

After a restart, a server may have an older state than before. A replica that takes over may lack the newest
publications. Redis does not report either, so a stream is bound to the generation of the server that it is
on. A script that finds a stream of another generation gives it a new epoch, unless the stream is known to be
complete: see ``lua/generation.lua``.

A generation consists of ``run_id``, which changes with each process, and ``master_replid``, which changes
when a process has been a replica. "+" is appended if a restart of this server loses nothing: it writes each
command to disk before it answers (``appendfsync always``), and has no replica that could take over instead.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from hubbub.exceptions import EngineUnavailable

_RUN_ID = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_REPLICATION_ID = re.compile(rb"^master_replid:(\w+)", re.MULTILINE)

# A primary with an append-only file, which has no replicas and was never one itself. Without a backlog, the
# first replica makes the server begin another generation.
_ON_ITS_OWN = (
    rb"^aof_enabled:1\s",
    rb"^role:master\s",
    rb"^connected_slaves:0\s",
    rb"^repl_backlog_active:0\s",
    rb"^master_replid2:0+\s",
)

#: The digits that are taken of each id, which are more than enough. The scripts take as many.
DIGITS = 16


async def ask_generation(ask: Callable[..., Awaitable[Any]]) -> str:
    """Return the generation of a server; empty if the user may not ask for it.

    :param ask: sends a command to the server, and returns the answer.
    :raises EngineUnavailable: the server does not answer.
    """
    info: bytes = await ask("INFO")
    run_id, replication_id = _RUN_ID.search(info), _replication_id(info)
    if run_id is None or not replication_id:
        return ""
    generation = run_id[1].decode()[:DIGITS] + replication_id
    if all(re.search(each, info, re.MULTILINE) for each in _ON_ITS_OWN) and await _syncs_always(ask):
        generation += "+"
    return generation


def is_current(generation: str, info: bytes) -> bool:
    """Return whether a server is still in ``generation``, although its process is the same.

    :param info: the server's answer to ``INFO replication``.
    """
    return _replication_id(info) in ("", generation[DIGITS:].rstrip("+"))


def _replication_id(info: bytes) -> str:
    found = _REPLICATION_ID.search(info)
    return found[1].decode()[:DIGITS] if found else ""


async def _syncs_always(ask: Callable[..., Awaitable[Any]]) -> bool:
    try:
        # One pattern for both settings: before Redis 7, CONFIG GET takes no more.
        words = await ask("CONFIG", "GET", "*appendfsync*")
    except EngineUnavailable:
        # Many servers refuse CONFIG, among them all managed ones.
        return False
    config = dict(zip(words[::2], words[1::2], strict=True))
    return config.get(b"appendfsync") == b"always" and config.get(b"no-appendfsync-on-rewrite") == b"no"
