"""What ``hubbub doctor`` says about a Redis or Valkey server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeAlias

from hubbub.engines.base import Diagnosis
from hubbub.exceptions import EngineUnavailable

#: The answer of one server to a command.
Ask: TypeAlias = Callable[..., Awaitable[Any]]

#: The oldest versions that know all commands we use, without a cluster and with one.
OLDEST, OLDEST_CLUSTER = (6, 2), (7, 0)

#: Bytes that a node which listens may fall behind, at the least, before the server cuts it off.
LEAST_BUFFER = 1_048_576


async def inspect(ask: Ask, where: str, *, is_cluster: bool = False) -> Sequence[Diagnosis]:
    """What there is to say about the server that ``ask`` asks.

    :param where: what it is called.
    """
    info = await _info(ask)
    if not info:
        return [
            Diagnosis(
                True,
                f"{where} does not tell this user about itself (INFO)",
                "See by other means that its version is 6.2 or newer and that it does not evict keys, or "
                "allow it: ACL SETUSER … +info. Without it, a restart from older data is only noticed by "
                "processes that outlive it.",
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
    """The setting, or nothing: many servers, and all that are rented, do not tell."""
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
    is_ok = tuple(int(each) if each.isdecimal() else 0 for each in numbers[:2]) >= oldest
    wanted = ".".join(map(str, oldest))
    return Diagnosis(is_ok, f"{name} {version} at {where}", "" if is_ok else f"Use Redis {wanted} or newer.")


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
            yield Diagnosis(False, "it cannot write its append-only file", "Look at its log and its disk.")
    else:
        yield Diagnosis(
            True,
            "a restart loses the last histories, or all of them (no append-only file)",
            "Clients are told when that happens. If they are not to miss anything: CONFIG SET appendonly yes",
        )
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Diagnosis(
            False,
            "it cannot save its snapshot, and may refuse what is published",
            "Look at its log and its disk.",
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
        "it cuts off nodes that are a moment behind (client-output-buffer-limit pubsub "
        f"{hard} {soft} {seconds})",
        'CONFIG SET client-output-buffer-limit "pubsub 33554432 8388608 60"',
    )


def _clients(info: dict[str, str]) -> Iterator[Diagnosis]:
    connected, most = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    if most and connected > 0.8 * most:
        yield Diagnosis(
            False,
            f"{connected} of {most} connections are taken",
            "Each process of an app needs two. Raise maxclients, or look who has so many.",
        )
