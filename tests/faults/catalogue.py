"""The faults, each with a name, for each engine.

A fault happens while clients receive and publish. Its function returns when everything that it broke is
repaired, except for lost messages.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias

import asyncpg

from tests.clients import DEADLINE, eventually
from tests.faults.brokers import B, Broker, PostgresBroker, Proxied, RedisBroker, SQLiteFile
from tests.faults.ledger import Loss
from tests.faults.stage import PAUSE, Stage
from tests.proxy import Way

#: Seconds: longer than every deadline of an engine, and a moment.
LONG, SHORT = 6.0, 1.5

#: Accepted messages of each publisher after which all works again.
WELL = 5


@dataclass(frozen=True)
class Fault(Generic[B]):
    """A fault.

    :param strike: breaks something, and repairs it.
    :param loss: the accepted messages that the engine loses.
    :param pause: seconds between two messages of a publisher.
    :param is_alone: no other fault may happen at the same time.
    """

    strike: Callable[[Stage, B], Coroutine[Any, Any, None]]
    loss: Loss = Loss.NOTHING
    pause: float = PAUSE
    is_alone: bool = False

    def __str__(self) -> str:
        return self.strike.__name__


#: Groups of faults. Faults of different groups may happen at once.
Groups: TypeAlias = Sequence[Sequence[Fault[Any]]]


# Workers, on every engine


async def nothing(stage: Stage, broker: Broker) -> None:
    """Break nothing, while publishers hardly pause."""
    await stage.accepted(30)


async def clients_come_and_go(stage: Stage, broker: Broker) -> None:
    """Reset each connection: clients miss messages, and resume while others are published."""
    for _ in range(3):
        for listener in stage.listeners:
            listener.cut()
            await asyncio.sleep(SHORT / len(stage.listeners))


async def worker_killed(stage: Stage, broker: Broker) -> None:
    for _ in range(2):
        await stage.kill(await stage.some_pid())
        await stage.accepted(WELL)


async def all_workers_killed(stage: Stage, broker: Broker) -> None:
    for pid in stage.pids():
        stage.signal(pid, signal.SIGKILL)


async def worker_paused(stage: Stage, broker: Broker) -> None:
    """Pause a worker for longer than engines wait."""
    async with stage.paused(await stage.some_pid()):
        await asyncio.sleep(LONG)


async def worker_hangs(stage: Stage, broker: Broker) -> None:
    """Pause a worker until its supervisor replaces it."""
    pid = await stage.some_pid()

    def is_replaced() -> bool:
        # Repeated, because another fault may have paused and resumed it.
        stage.signal(pid, signal.SIGSTOP)
        return pid not in stage.pids()

    await eventually(is_replaced, DEADLINE)


async def app_restarted(stage: Stage, broker: Broker) -> None:
    await stage.restart()


WORKERS: Sequence[Fault[Any]] = (
    Fault(nothing, pause=0.01),
    Fault(clients_come_and_go, pause=0.02),
    Fault(worker_killed),
    Fault(all_workers_killed),
    Fault(worker_paused),
    # An app does not start without its engine.
    Fault(app_restarted, is_alone=True),
)


# SQLite


async def file_removed(stage: Stage, broker: SQLiteFile) -> None:
    for path in broker.files:
        # SQLite removes the files beside it, too.
        path.unlink(missing_ok=True)


async def file_locked(stage: Stage, broker: SQLiteFile) -> None:
    """Hold a write lock for longer than the engine waits."""
    connection = sqlite3.connect(broker.path, timeout=DEADLINE, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(LONG)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


async def disk_full(stage: Stage, broker: SQLiteFile) -> None:
    """Limit the size of files, so that no worker can write."""

    def limit(pid: int, size: int) -> None:
        # Another fault may have killed it meanwhile.
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    pids = stage.pids()
    for pid in pids:
        limit(pid, 0)
    await asyncio.sleep(SHORT)
    for pid in pids:
        limit(pid, resource.RLIM_INFINITY)


async def worker_killed_while_locked(stage: Stage, broker: SQLiteFile) -> None:
    """Kill a worker, which is replaced while the file is locked."""
    pid = await stage.some_pid()
    connection = sqlite3.connect(broker.path, timeout=DEADLINE, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        stage.signal(pid, signal.SIGKILL)
        await asyncio.sleep(SHORT)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


SQLITE: Groups = (
    WORKERS,
    (
        Fault(file_removed, loss=Loss.EVERYTHING),
        Fault(file_locked),
        Fault(worker_killed_while_locked),
        # Only Linux lets one limit another process.
        *([Fault(disk_full)] if hasattr(resource, "prlimit") else []),
    ),
)


# The network between workers and server


async def connections_cut(stage: Stage, broker: Proxied) -> None:
    """Cut all connections at once, then one after another."""
    broker.proxy.cut()
    await stage.accepted(WELL)
    for _ in range(3):
        # A worker closes all its connections when it loses one, and opens new ones a moment later.
        await eventually(lambda: bool(broker.proxy.links), DEADLINE)
        broker.proxy.cut([stage.random.choice(broker.proxy.links)])
        await stage.accepted(WELL)


async def connections_refused(stage: Stage, broker: Proxied) -> None:
    """Cut all connections, and refuse new ones for a while."""
    broker.proxy.refuse()
    broker.proxy.cut()
    await asyncio.sleep(2 * SHORT)
    broker.proxy.accept()


async def network_stalls(stage: Stage, broker: Proxied) -> None:
    """Delay all bytes for longer than engines wait."""
    broker.proxy.stall()
    await asyncio.sleep(LONG)
    broker.proxy.heal()


async def network_stutters(stage: Stage, broker: Proxied) -> None:
    """Delay bytes often, but not for as long as engines wait."""
    for _ in range(10):
        broker.proxy.stall(stage.random.choice(list(Way)))
        await asyncio.sleep(0.4 * stage.random.random())
        broker.proxy.heal()
        await asyncio.sleep(0.1 * stage.random.random())


async def answers_stall(stage: Stage, broker: Proxied) -> None:
    broker.proxy.stall(Way.TO_WORKER)
    await asyncio.sleep(LONG)
    broker.proxy.heal()


async def questions_vanish(stage: Stage, broker: Proxied) -> None:
    """Lose the bytes that workers send, on connections that stay open."""
    broker.proxy.half_open(Way.TO_SERVER)
    await asyncio.sleep(SHORT)
    broker.proxy.heal()


async def answers_vanish(stage: Stage, broker: Proxied) -> None:
    """Lose the bytes that the server sends: commands of workers are executed without an answer."""
    broker.proxy.half_open(Way.TO_WORKER)
    await asyncio.sleep(SHORT)
    broker.proxy.heal()


async def worker_killed_while_stalled(stage: Stage, broker: Proxied) -> None:
    pid = await stage.some_pid()
    broker.proxy.stall()
    stage.signal(pid, signal.SIGKILL)
    await asyncio.sleep(SHORT)
    broker.proxy.heal()


async def all_workers_killed_while_refused(stage: Stage, broker: Proxied) -> None:
    """Kill all workers while the server cannot be reached."""
    broker.proxy.refuse()
    broker.proxy.cut()
    for pid in stage.pids():
        stage.signal(pid, signal.SIGKILL)
    await asyncio.sleep(LONG)
    broker.proxy.accept()


NETWORK: Sequence[Fault[Any]] = (
    Fault(connections_cut),
    Fault(connections_refused),
    Fault(network_stalls),
    Fault(network_stutters),
    Fault(answers_stall),
    Fault(questions_vanish),
    Fault(answers_vanish),
    Fault(worker_killed_while_stalled),
    Fault(all_workers_killed_while_refused),
)


# Redis


async def server_killed(stage: Stage, broker: RedisBroker) -> None:
    """Kill the server, which restarts with its data."""
    await asyncio.to_thread(broker.server.kill)
    await asyncio.sleep(SHORT)
    await asyncio.to_thread(broker.server.start)


async def server_forgets(stage: Stage, broker: RedisBroker) -> None:
    """Kill the server, which restarts without its data."""
    await asyncio.to_thread(broker.server.kill)
    broker.server.forget()
    await asyncio.to_thread(broker.server.start)


async def server_flushed(stage: Stage, broker: RedisBroker) -> None:
    """Remove all data and scripts, while connections stay open."""
    broker.client.flushall()
    broker.client.script_flush()


async def stream_evicted(stage: Stage, broker: RedisBroker) -> None:
    """Remove the metadata of the stream, then its log, as a server does that is short of memory."""
    for end in ("meta", "log"):
        broker.client.delete(f"{stage.namespace}:{{chat}}:{end}")
        await stage.accepted(WELL)


async def server_set_back(stage: Stage, broker: RedisBroker) -> None:
    """Restart the server with older data, as after a crash before the last data was written."""
    older = broker.server.back_up()
    await stage.accepted(2 * WELL)
    await asyncio.to_thread(broker.server.kill)
    broker.server.restore(older)
    await asyncio.to_thread(broker.server.start)


async def server_set_back_while_workers_are_killed(stage: Stage, broker: RedisBroker) -> None:
    """Set the server back, and kill all workers but one: offsets of their clients are assigned again."""
    pids = stage.pids()
    await server_set_back(stage, broker)
    for pid in pids[1:]:
        stage.signal(pid, signal.SIGKILL)


async def server_set_back_while_all_workers_are_killed(stage: Stage, broker: RedisBroker) -> None:
    """Set the server back while no worker lives that could notice; the server does not sync each write."""
    older = broker.server.back_up()
    await stage.accepted(2 * WELL)
    await asyncio.to_thread(broker.server.kill)
    await all_workers_killed(stage, broker)
    broker.server.restore(older)
    options, broker.server.options = broker.server.options, ("appendfsync", "no")
    try:
        await asyncio.to_thread(broker.server.start)
        await stage.joined()
        await stage.accepted(WELL)
    finally:
        broker.server.options = options
    # Clients that have joined since can resume.
    await asyncio.to_thread(broker.server.kill)
    await asyncio.to_thread(broker.server.start)


async def server_frozen(stage: Stage, broker: RedisBroker) -> None:
    with broker.server.frozen():
        await asyncio.sleep(LONG)


async def server_killed_with_a_worker(stage: Stage, broker: RedisBroker) -> None:
    pid = await stage.some_pid()
    await asyncio.to_thread(broker.server.kill)
    stage.signal(pid, signal.SIGKILL)
    await asyncio.to_thread(broker.server.start)


async def server_forgets_and_a_worker_is_paused(stage: Stage, broker: RedisBroker) -> None:
    """Restart the server without its data while a worker is paused."""
    async with stage.paused(await stage.some_pid()):
        await server_forgets(stage, broker)
        await asyncio.sleep(SHORT)


REDIS: Groups = (
    WORKERS,
    NETWORK,
    (
        # It concerns no engine in particular, so it runs on one.
        Fault(worker_hangs),
        Fault(server_killed),
        Fault(server_forgets, loss=Loss.EVERYTHING),
        Fault(server_flushed, loss=Loss.EVERYTHING),
        Fault(stream_evicted, loss=Loss.EVERYTHING),
        Fault(server_set_back, loss=Loss.THE_LATEST, is_alone=True),
        Fault(server_set_back_while_workers_are_killed, loss=Loss.THE_LATEST, is_alone=True),
        Fault(server_set_back_while_all_workers_are_killed, loss=Loss.THE_LATEST, is_alone=True),
        Fault(server_frozen),
        Fault(server_killed_with_a_worker),
        Fault(server_forgets_and_a_worker_is_paused, loss=Loss.EVERYTHING),
    ),
)


# PostgreSQL


async def server_restarted(stage: Stage, broker: PostgresBroker) -> None:
    await asyncio.to_thread(broker.server.stop, "fast")
    await asyncio.sleep(SHORT)
    await asyncio.to_thread(broker.server.start)


async def server_crashed(stage: Stage, broker: PostgresBroker) -> None:
    await asyncio.to_thread(broker.server.stop, "immediate")
    await asyncio.sleep(SHORT)
    await asyncio.to_thread(broker.server.start)


async def backends_terminated(stage: Stage, broker: PostgresBroker) -> None:
    for _ in range(3):
        await broker.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        await stage.accepted(WELL)


async def schema_dropped(stage: Stage, broker: PostgresBroker) -> None:
    """Drop all data, while connections stay open."""
    await broker.execute(f'DROP SCHEMA "{stage.namespace}" CASCADE')


async def channel_locked(stage: Stage, broker: PostgresBroker) -> None:
    """Publish in a transaction that stays open for long and is rolled back."""
    connection = await asyncpg.connect(broker.server.url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(f"""SELECT "{stage.namespace}".publish('chat', 'taken back'::text)""")
        await asyncio.sleep(LONG)
        await transaction.rollback()
    finally:
        await connection.close()


async def publications_truncated(stage: Stage, broker: PostgresBroker) -> None:
    """Remove all publications while some clients are disconnected and miss messages."""
    for listener in stage.listeners[::2]:
        listener.cut()
    await stage.accepted(1)
    await broker.execute(f'TRUNCATE "{stage.namespace}".publications')


async def stream_set_back(stage: Stage, broker: PostgresBroker) -> None:
    """Remove the last ten messages and their keys, as after a crash of a server that does not sync."""
    broker.proxy.refuse()
    broker.proxy.cut()
    await broker.execute(
        f"""
        BEGIN;
        UPDATE "{stage.namespace}".streams SET sequence = sequence - 10;
        DELETE FROM "{stage.namespace}".publications p USING "{stage.namespace}".streams s
            WHERE p.channel = s.channel AND p.sequence > s.sequence;
        DELETE FROM "{stage.namespace}".keys k USING "{stage.namespace}".streams s
            WHERE k.channel = s.channel AND k."offset" > s.sequence - s.base;
        COMMIT;
        """
    )
    broker.proxy.accept()


async def server_crashed_with_a_worker(stage: Stage, broker: PostgresBroker) -> None:
    pid = await stage.some_pid()
    await asyncio.to_thread(broker.server.stop, "immediate")
    stage.signal(pid, signal.SIGKILL)
    await asyncio.to_thread(broker.server.start)


POSTGRES: Groups = (
    WORKERS,
    NETWORK,
    (
        Fault(server_restarted),
        Fault(server_crashed),
        Fault(backends_terminated),
        Fault(schema_dropped, loss=Loss.EVERYTHING),
        Fault(publications_truncated, loss=Loss.EVERYTHING),
        # No worker could notice if none survived it.
        Fault(stream_set_back, loss=Loss.THE_LATEST, is_alone=True),
        Fault(channel_locked),
        Fault(server_crashed_with_a_worker),
    ),
)
