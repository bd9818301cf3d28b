"""Rechecks: a few at a time, one at a time for each connection, and none without an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar

import pytest

from hubbub.engines import engine_for
from hubbub.node.control import Recheck
from hubbub.node.node import Node
from hubbub.node.rechecks import AT_ONCE, TIMEOUT, Rechecks
from hubbub.testing import FakeServer
from tests.clients import DEADLINE
from tests.clock import TURNS, FakeClock
from tests.nodes import running

#: Set by whatever task sends a command.
request: ContextVar[str] = ContextVar("request", default="none")


class Connection:
    """A connection whose rechecks wait until the test lets them go on."""

    def __init__(self, id_: str, check: Callable[[], Awaitable[None]] | None = None) -> None:
        self.id = id_
        self.user: str | None = "ann"
        self.begun = self.done = 0
        self.go_on = asyncio.Event()
        self.ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.contexts: list[str] = []
        self._check = check or self._wait
        self.backlog = self.dropped = 0

    async def _wait(self) -> None:
        await self.go_on.wait()

    async def recheck(self) -> None:
        self.begun += 1
        self.contexts.append(request.get())
        await self._check()
        self.done += 1

    def tick(self, now: float) -> None:
        """Nothing is due."""

    def end(self, code: int, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result((code, reason))


async def turns() -> None:
    """Let tasks do all that they can do."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def rechecks(clock: FakeClock) -> AsyncIterator[Rechecks]:
    rechecks = Rechecks(clock)
    yield rechecks
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            await rechecks.stop()


async def test_a_few_connections_are_rechecked_at_a_time(rechecks: Rechecks) -> None:
    connections = [Connection(str(number)) for number in range(AT_ONCE + 3)]
    rechecks.carry_out(connections)
    await turns()
    assert [each.begun for each in connections] == [1] * AT_ONCE + [0] * 3
    for each in connections[:2]:
        each.go_on.set()
    await turns()
    assert [each.begun for each in connections] == [1] * (AT_ONCE + 2) + [0]
    for each in connections:
        each.go_on.set()
    await turns()
    assert [(each.begun, each.done) for each in connections] == [(1, 1)] * len(connections)
    assert not any(each.ended.done() for each in connections)


async def test_a_connection_that_is_being_rechecked_is_rechecked_once_more(rechecks: Rechecks) -> None:
    one, two = Connection("1"), Connection("2")
    for _ in range(3):
        rechecks.carry_out([one, two])
        await turns()
    # Never two at the same time.
    assert (one.begun, two.begun) == (1, 1)
    one.go_on.set()
    await turns()
    assert (one.begun, one.done) == (2, 2)
    assert (two.begun, two.done) == (1, 0)


async def test_connections_that_are_being_rechecked_do_not_hold_up_others(rechecks: Rechecks) -> None:
    busy = [Connection(str(number)) for number in range(AT_ONCE - 1)]
    rechecks.carry_out(busy)
    await turns()
    rechecks.carry_out(busy)
    other = Connection("other", check=turns)
    rechecks.carry_out([other])
    await turns()
    assert other.begun == 1
    assert [each.begun for each in busy] == [1] * len(busy)


async def test_a_new_connection_catches_up_with_commands_of_the_time_between(rechecks: Rechecks) -> None:
    before = rechecks.count
    early = Connection("early", turns)
    rechecks.catch_up(early, before)
    rechecks.carry_out([])
    late = Connection("late", turns)
    rechecks.catch_up(late, before)
    rechecks.catch_up(early, rechecks.count)
    await turns()
    assert (early.begun, late.begun) == (0, 1)


async def test_a_recheck_that_raises_ends_its_connection_alone(
    rechecks: Rechecks, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ConnectionError("no database")

    failing, other = Connection("failing", fail), Connection("other", turns)
    rechecks.carry_out([failing, other])
    async with asyncio.timeout(DEADLINE):
        assert await failing.ended == (1011, "recheck failed")
    await turns()
    await turns()
    assert other.done == 1
    assert not other.ended.done()
    (record,) = caplog.records
    assert "The recheck of connection failing failed" in record.getMessage()
    assert record.exc_info is not None


async def test_a_recheck_that_takes_too_long_ends_its_connection(
    rechecks: Rechecks, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    slow = [Connection(str(number)) for number in range(AT_ONCE)]
    after = Connection("after", turns)
    rechecks.carry_out([*slow, after])
    await turns()
    clock.advance(TIMEOUT - 1)
    await turns()
    assert not any(each.ended.done() for each in slow)
    clock.advance(1)
    async with asyncio.timeout(DEADLINE):
        assert await asyncio.gather(*(each.ended for each in slow)) == [(1011, "recheck failed")] * AT_ONCE
    await turns()
    await turns()
    assert after.done == 1
    clock.advance(2 * TIMEOUT)
    await turns()
    assert not after.ended.done()
    assert len(caplog.records) == AT_ONCE


async def test_connections_that_have_ended_are_not_rechecked(rechecks: Rechecks) -> None:
    busy = [Connection(str(number)) for number in range(AT_ONCE)]
    late = Connection("late")
    rechecks.carry_out([*busy, late])
    await turns()
    rechecks.forget(late)
    rechecks.forget(busy[0])
    for each in busy:
        each.go_on.set()
    await turns()
    assert late.begun == 0
    # One that is running goes on to its end, so that it closes what it has opened.
    assert busy[0].done == 1


async def test_a_node_rechecks_no_connection_that_has_left() -> None:
    async with running(FakeServer()) as node:
        connections = [Connection(str(number)) for number in range(AT_ONCE + 1)]
        for each in connections:
            node.add(each)
        await node.command(Recheck("ann"))
        await turns()
        for each in connections:
            node.remove(each)
            each.go_on.set()
        await turns()
        assert [each.begun for each in connections] == [1] * AT_ONCE + [0]


async def test_a_recheck_has_the_context_of_the_node(rechecks: Rechecks) -> None:
    async def change() -> None:
        request.set("the recheck's own")

    one, two = Connection("1", change), Connection("2", change)
    token = request.set("the request that sends the command")
    try:
        rechecks.carry_out([one])
        await turns()
        rechecks.carry_out([one, two])
        await turns()
    finally:
        request.reset(token)
    assert one.contexts + two.contexts == ["none"] * 3


async def test_a_stop_waits_for_rechecks_and_begins_no_more(rechecks: Rechecks) -> None:
    connections = [Connection(str(number)) for number in range(AT_ONCE + 1)]
    rechecks.carry_out(connections)
    await turns()
    stopping = asyncio.create_task(rechecks.stop())
    await turns()
    assert not stopping.done()
    for each in connections:
        each.go_on.set()
    async with asyncio.timeout(DEADLINE):
        await stopping
    rechecks.carry_out(connections)
    await turns()
    assert [each.done for each in connections] == [1] * AT_ONCE + [0]


async def test_a_stop_that_is_cancelled_cancels_rechecks(rechecks: Rechecks) -> None:
    cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    connection = Connection("1", wait)
    rechecks.carry_out([connection])
    await turns()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await rechecks.stop()
    async with asyncio.timeout(DEADLINE):
        await cancelled.wait()
    # It has not failed: the node stops.
    assert not connection.ended.done()


async def test_a_command_reaches_every_process(engine_url: str, namespace: str) -> None:
    async with asyncio.timeout(DEADLINE), AsyncExitStack() as stack:
        connections = []
        for number in range(3):
            node = Node(engine_for(engine_url, namespace))
            await node.start()
            stack.push_async_callback(node.stop, 1012, "restart", 1)
            for user in ("ann", "bob"):
                connection = Connection(f"{user} {number}", turns)
                connection.user = user
                node.add(connection)
                stack.callback(node.remove, connection)
                connections.append(connection)
        await node.command(Recheck("bob"))
        for connection in connections:
            while connection.user == "bob" and not connection.done:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert {each.user for each in connections if each.begun} == {"bob"}
