"""What may go wrong: each fault by its name, for each engine.

A fault happens while clients listen and publish, and is over when its function returns: whatever it broke has
been mended then, but for what is lost.
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

#: Seconds: longer than any deadline of an engine; and a moment.
LONG, SHORT = 6.0, 1.5

#: Messages of each publisher that show that all is well again.
WELL = 5


@dataclass(frozen=True)
class Fault(Generic[B]):
    """Something that goes wrong.

    :param strike: lets it happen, and mends it.
    :param loss: what the engine loses of what it had accepted.
    :param pause: seconds between two messages of a publisher.
    :param is_alone: nothing else may go wrong at the same time.
    """

    strike: Callable[[Stage, B], Coroutine[Any, Any, None]]
    loss: Loss = Loss.NOTHING
    pause: float = PAUSE
    is_alone: bool = False

    def __str__(self) -> str:
        return self.strike.__name__


#: What may go wrong, in groups. Faults of different groups may happen at once.
Groups: TypeAlias = Sequence[Sequence[Fault[Any]]]


# What happens to workers, whatever the engine


async def nothing(stage: Stage, broker: Broker) -> None:
    """Though publishers hardly pause."""
    await stage.accepted(30)


async def clients_come_and_go(stage: Stage, broker: Broker) -> None:
    """Each misses some, and is let in while others are published."""
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
    """For longer than engines wait; then it goes on where it was."""
    async with stage.paused(await stage.some_pid()):
        await asyncio.sleep(LONG)


async def worker_hangs(stage: Stage, broker: Broker) -> None:
    """For so long that its supervisor replaces it."""
    pid = await stage.some_pid()

    def is_replaced() -> bool:
        # Again and again: another fault may have paused it, and let it go on.
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
        # Who opens the file may be removing what the last one has left beside it.
        path.unlink(missing_ok=True)


async def file_locked(stage: Stage, broker: SQLiteFile) -> None:
    """By somebody who does not let go for longer than the engine waits."""
    connection = sqlite3.connect(broker.path, timeout=DEADLINE, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(LONG)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


async def disk_full(stage: Stage, broker: SQLiteFile) -> None:
    """No worker can write to a file."""

    def limit(pid: int, size: int) -> None:
        # It may have been killed meanwhile, by another fault.
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
    """Killed and replaced while nobody can write."""
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
    """All at once, then one after another: those that listen, those that publish, those of one worker."""
    broker.proxy.cut()
    await stage.accepted(WELL)
    for _ in range(3):
        # All of a worker's go when one of them does, and it takes a moment until there are others.
        await eventually(lambda: bool(broker.proxy.links), DEADLINE)
        broker.proxy.cut([stage.random.choice(broker.proxy.links)])
        await stage.accepted(WELL)


async def connections_refused(stage: Stage, broker: Proxied) -> None:
    """Cut, and for a while there are no new ones."""
    broker.proxy.refuse()
    broker.proxy.cut()
    await asyncio.sleep(2 * SHORT)
    broker.proxy.accept()


async def network_stalls(stage: Stage, broker: Proxied) -> None:
    """For longer than engines wait. Then all that was on its way arrives."""
    broker.proxy.stall()
    await asyncio.sleep(LONG)
    broker.proxy.heal()


async def network_stutters(stage: Stage, broker: Proxied) -> None:
    """Never for so long that anybody gives up."""
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
    """What workers send is lost, on connections that seem to stand."""
    broker.proxy.half_open(Way.TO_SERVER)
    await asyncio.sleep(SHORT)
    broker.proxy.heal()


async def answers_vanish(stage: Stage, broker: Proxied) -> None:
    """What workers send is done, and they are not told; nor what others do."""
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
    """Nobody serves until the server is back."""
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
    """It comes back with what it has written."""
    await asyncio.to_thread(broker.server.kill)
    await asyncio.sleep(SHORT)
    await asyncio.to_thread(broker.server.start)


async def server_forgets(stage: Stage, broker: RedisBroker) -> None:
    """It comes back with nothing."""
    await asyncio.to_thread(broker.server.kill)
    broker.server.forget()
    await asyncio.to_thread(broker.server.start)


async def server_flushed(stage: Stage, broker: RedisBroker) -> None:
    """All that was there is gone, scripts and all, and no connection with it."""
    broker.client.flushall()
    broker.client.script_flush()


async def stream_evicted(stage: Stage, broker: RedisBroker) -> None:
    """Memory is short, and what is known of the stream has to go; then what is in it."""
    for end in ("meta", "log"):
        broker.client.delete(f"{stage.namespace}:{{chat}}:{end}")
        await stage.accepted(WELL)


async def server_set_back(stage: Stage, broker: RedisBroker) -> None:
    """It comes back as it was a while ago, as one does that had not written down the last of it."""
    older = broker.server.back_up()
    await stage.accepted(2 * WELL)
    await asyncio.to_thread(broker.server.kill)
    broker.server.restore(older)
    await asyncio.to_thread(broker.server.start)


async def server_set_back_while_workers_are_killed(stage: Stage, broker: RedisBroker) -> None:
    """All but one: their clients come back when their offsets have been given out again."""
    pids = stage.pids()
    await server_set_back(stage, broker)
    for pid in pids[1:]:
        stage.signal(pid, signal.SIGKILL)


async def server_set_back_while_all_workers_are_killed(stage: Stage, broker: RedisBroker) -> None:
    """Nobody knows what is lost, and the server does not sync always, so that something may be."""
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
    # Those that have come since find what they know.
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
    """The worker comes back to another stream than it left."""
    async with stage.paused(await stage.some_pid()):
        await server_forgets(stage, broker)
        await asyncio.sleep(SHORT)


REDIS: Groups = (
    WORKERS,
    NETWORK,
    (
        # Of no engine in particular; once will do.
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
    """All that was there is gone, and no connection with it."""
    await broker.execute(f'DROP SCHEMA "{stage.namespace}" CASCADE')


async def channel_locked(stage: Stage, broker: PostgresBroker) -> None:
    """By a transaction that published to it, stays open for long, and is rolled back."""
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
    """What was published is gone, while clients are away that have missed some of it."""
    for listener in stage.listeners[::2]:
        listener.cut()
    await stage.accepted(1)
    await broker.execute(f'TRUNCATE "{stage.namespace}".publications')


async def stream_set_back(stage: Stage, broker: PostgresBroker) -> None:
    """The last ten messages and their keys are gone, as after a crash of a server that does not sync."""
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
        # If no worker outlived it, nobody could notice.
        Fault(stream_set_back, loss=Loss.THE_LATEST, is_alone=True),
        Fault(channel_locked),
        Fault(server_crashed_with_a_worker),
    ),
)
