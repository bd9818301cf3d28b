"""Diagnoses of a Redis or Valkey server, for ``hubbub doctor``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeAlias

from hubbub.engines.diagnostics import Diagnosis
from hubbub.exceptions import EngineUnavailable

#: Sends a command to one server, and returns its answer.
Ask: TypeAlias = Callable[..., Awaitable[Any]]

#: The oldest versions that have all commands that the engine uses, without a cluster and with one.
OLDEST, OLDEST_CLUSTER = (6, 2), (7, 0)

#: The least bytes that a node may fall behind before the server closes its listening connection.
LEAST_BUFFER = 1_048_576


async def inspect(ask: Ask, where: str, *, is_cluster: bool = False) -> Sequence[Diagnosis]:
    """Examine a server.

    :param ask: sends a command to it.
    :param where: its host and port.
    :param is_cluster: whether it is a node of a cluster.
    """
    info = await _info(ask)
    if not info:
        return [
            Diagnosis(
                True,
                f"the server at {where} does not let this user read its state (INFO)",
                "Allow it (ACL SETUSER … +info), or make sure by other means that its version is 6.2 or "
                "newer and that it does not evict keys. Without INFO, a restart with older data is only "
                "noticed by processes that were running before it.",
            )
        ]
    config = await _config(ask, "client-output-buffer-limit")
    return [
        _version(info, where, OLDEST_CLUSTER if is_cluster else OLDEST),
        _eviction(info),
        *_persistence(info),
        *_replication(info),
        *_buffers(config.get("client-output-buffer-limit", "")),
        *_clients(info),
    ]


async def _info(ask: Ask) -> dict[str, str]:
    try:
        answer: bytes = await ask("INFO")
    except EngineUnavailable:
        return {}
    pairs = (line.partition(":") for line in answer.decode(errors="replace").splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


async def _config(ask: Ask, name: str) -> dict[str, str]:
    """Return the setting; empty where the server refuses CONFIG, as all managed ones do."""
    try:
        answer = await ask("CONFIG", "GET", name)
    except EngineUnavailable:
        return {}
    words = [each.decode(errors="replace") for each in answer]
    return dict(zip(words[::2], words[1::2], strict=True))


def _version(info: dict[str, str], where: str, oldest: tuple[int, int]) -> Diagnosis:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "?")
    numbers = info.get("redis_version", "0.0").split(".")
    ok = tuple(int(each) if each.isdecimal() else 0 for each in numbers[:2]) >= oldest
    wanted = ".".join(map(str, oldest))
    return Diagnosis(ok, f"{name} {version} at {where}", "" if ok else f"Use Redis {wanted} or newer.")


def _eviction(info: dict[str, str]) -> Diagnosis:
    policy, limit = info.get("maxmemory_policy", "noeviction"), info.get("maxmemory", "0")
    if policy == "noeviction":
        return Diagnosis(True, f"it evicts nothing (maxmemory-policy {policy})")
    if limit == "0":
        return Diagnosis(True, f"maxmemory-policy is {policy}, but there is no maxmemory: it evicts nothing")
    return Diagnosis(
        False,
        f"when its memory is full it evicts histories (maxmemory-policy {policy})",
        "Use a server of its own for Hubbub, and: CONFIG SET maxmemory-policy noeviction",
    )


def _persistence(info: dict[str, str]) -> Iterator[Diagnosis]:
    if info.get("aof_enabled") == "1":
        yield Diagnosis(True, "a restart keeps histories (append-only file)")
        if info.get("aof_last_write_status", "ok") != "ok":
            yield Diagnosis(False, "it cannot write its append-only file", "Check its log and its disk.")
    else:
        yield Diagnosis(
            True,
            "a restart loses the last histories, or all of them (no append-only file)",
            "Clients are notified of the loss. To lose nothing: CONFIG SET appendonly yes",
        )
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Diagnosis(
            False,
            "it cannot save its snapshot, and may refuse publications",
            "Check its log and its disk.",
        )


def _replication(info: dict[str, str]) -> Iterator[Diagnosis]:
    role, replicas = info.get("role", "master"), info.get("connected_slaves", "0")
    if role != "master":
        yield Diagnosis(
            False, f"it is a replica ({role})", "Give the URL of the primary, or of the sentinels."
        )
    elif replicas != "0":
        yield Diagnosis(True, f"it is a primary with {replicas} replicas")


def _buffers(limits: str) -> Iterator[Diagnosis]:
    words = limits.split()
    if "pubsub" not in words:
        return
    hard, soft, seconds = words[words.index("pubsub") + 1 :][:3]
    if all(int(each) == 0 or int(each) >= LEAST_BUFFER for each in (hard, soft)):
        return
    yield Diagnosis(
        False,
        "it disconnects nodes that fall behind for a moment (client-output-buffer-limit pubsub "
        f"{hard} {soft} {seconds})",
        'CONFIG SET client-output-buffer-limit "pubsub 33554432 8388608 60"',
    )


def _clients(info: dict[str, str]) -> Iterator[Diagnosis]:
    connected, most = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    if most and connected > 0.8 * most:
        yield Diagnosis(
            False,
            f"{connected} of {most} connections are taken",
            "Each process of an app needs two. Raise maxclients, or find out which clients have so many.",
        )
