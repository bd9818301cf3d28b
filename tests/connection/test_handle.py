"""The handle by which a node and a writer end a connection."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from hubbub.connection.handle import Handle
from hubbub.connection.limits import Limits
from hubbub.connection.receiving import Receiver
from hubbub.node.control import Recheck
from hubbub.testing.fake_engine import FakeServer
from tests.clients import DEADLINE
from tests.clock import FakeClock
from tests.nodes import running

LIMITS = Limits(
    max_message_size=1000,
    outbox_limit=1000,
    slow_consumer="disconnect",
    send_timeout=30.0,
    close_timeout=5.0,
)


class FakeWriter:
    """A writer whose client does as the test says."""

    def __init__(self) -> None:
        self.is_gone = False
        self.stalled_for = 0.0
        self.backlog = 7
        self.dropped = 3
        #: The calls of ``end``: code, reason and whether the outbox was discarded.
        self.ends: list[tuple[int | None, str, bool]] = []

    def stalled(self, now: float) -> float:
        return self.stalled_for

    def end(self, code: int | None, reason: str = "", *, discard: bool = False) -> None:
        self.ends.append((code, reason, discard))


class Rig:
    def __init__(self) -> None:
        self.wall_clock = FakeClock(1_800_000_000.0)
        self.node = SimpleNamespace(slow_disconnects=0, wall_clock=self.wall_clock)
        self.receiver = Receiver(None)  # type: ignore[arg-type]
        self.writer = FakeWriter()
        node: Any = self.node
        self.handle = Handle(node, "ann", self.receiver, LIMITS)
        writer: Any = self.writer
        self.handle.writer = writer


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_connection_without_a_writer_has_no_backlog() -> None:
    rig = Rig()
    rig.handle.writer = None
    assert (rig.handle.backlog, rig.handle.dropped) == (0, 0)
    rig.handle.tick(1000.0)
    assert rig.receiver.ended is None


def test_the_counts_are_those_of_the_writer(rig: Rig) -> None:
    assert (rig.handle.backlog, rig.handle.dropped) == (7, 3)


def test_the_end_is_sent_and_received(rig: Rig) -> None:
    rig.handle.end(4001, "x" * 200)
    assert rig.writer.ends == [(4001, "x" * 123, False)]
    assert rig.receiver.ended == (4001, "x" * 123)
    # Only the first end counts for the handler.
    rig.handle.end(1012, "restart")
    assert rig.receiver.ended == (4001, "x" * 123)


@pytest.mark.parametrize(("seconds", "is_disconnected"), [(0.0, False), (30.0, False), (30.1, True)])
def test_a_client_that_takes_nothing_is_disconnected(rig: Rig, seconds: float, is_disconnected: bool) -> None:
    rig.writer.stalled_for = seconds
    rig.handle.tick(100.0)
    assert (rig.receiver.ended is not None) == is_disconnected
    assert rig.node.slow_disconnects == is_disconnected
    if is_disconnected:
        # Messages that wait are not sent first: the client would not take them.
        assert rig.writer.ends[0] == (3008, "slow: nothing taken for 30 s", True)
        rig.handle.tick(101.0)
        assert rig.node.slow_disconnects == 1


def test_a_lost_client_ends_the_handler_after_a_while(rig: Rig) -> None:
    rig.writer.is_gone = True
    for now in (100.0, 103.0, 105.0):
        rig.handle.tick(now)
        assert rig.receiver.ended is None
    rig.handle.tick(105.1)
    assert rig.receiver.ended == (1006, "")
    assert rig.receiver.client_left
    assert rig.node.slow_disconnects == 0


def test_an_expired_connection_ends_with_3005_after_a_notice(rig: Rig) -> None:
    notices: list[int] = []
    rig.handle.expire_at(rig.wall_clock() + 60, notices.append)
    for _ in range(59):
        rig.wall_clock.advance(1.0)
        rig.handle.tick(0.0)
    assert notices == [25]
    assert rig.receiver.ended is None
    rig.wall_clock.advance(1.0)
    rig.handle.tick(0.0)
    # Messages that wait are sent first.
    assert rig.writer.ends == [(3005, "expired", False)]
    assert rig.receiver.ended == (3005, "expired")
    rig.handle.tick(0.0)
    assert len(rig.writer.ends) == 1


def test_a_notice_comes_at_once_if_less_is_left(rig: Rig) -> None:
    notices: list[int] = []
    rig.handle.expire_at(rig.wall_clock() + 9.5, notices.append)
    assert notices == [10]
    rig.handle.expire_at(rig.wall_clock() - 1, notices.append)
    assert rig.receiver.ended == (3005, "expired")
    assert notices == [10]


def test_a_refresh_replaces_the_expiry(rig: Rig) -> None:
    notices: list[int] = []
    rig.handle.expire_at(rig.wall_clock() + 20, notices.append)
    rig.handle.expire_at(rig.wall_clock() + 60, notices.append)
    rig.wall_clock.advance(20.0)
    rig.handle.tick(0.0)
    assert (rig.receiver.ended, notices) == (None, [20])
    rig.handle.expire_at(None)
    rig.wall_clock.advance(1000.0)
    rig.handle.tick(0.0)
    assert (rig.receiver.ended, notices) == (None, [20])


def test_a_connection_that_has_ended_does_not_expire(rig: Rig) -> None:
    notices: list[int] = []
    rig.handle.end(4001, "bye")
    rig.handle.expire_at(rig.wall_clock() + 1, notices.append)
    rig.wall_clock.advance(2.0)
    rig.handle.tick(0.0)
    assert rig.writer.ends == [(4001, "bye", False)]
    assert notices == []


def test_a_connection_expires_before_it_is_accepted(rig: Rig) -> None:
    rig.handle.writer = None
    rig.handle.expire_at(rig.wall_clock() + 1)
    rig.wall_clock.advance(1.0)
    rig.handle.tick(0.0)
    assert rig.receiver.ended == (3005, "expired")


async def test_the_node_ends_expired_connections_once_a_second() -> None:
    clock = FakeClock(1_800_000_000.0)
    async with running(FakeServer(), clock=clock) as node:
        handles = []
        for name, expires_at in (("ann", clock() + 30), ("bob", None), ("eve", clock() + 90)):
            handle = Handle(node, name, Receiver(None), LIMITS)  # type: ignore[arg-type]
            handle.expire_at(expires_at)
            node.add(handle)
            handles.append(handle)
        writers: list[Any] = [FakeWriter() for _ in handles]
        for handle, writer in zip(handles, writers, strict=True):
            handle.writer = writer
        await clock.pass_time(29.0, 1.0)
        assert [writer.ends for writer in writers] == [[], [], []]
        await clock.pass_time(2.0, 1.0)
        assert [writer.ends for writer in writers] == [[(3005, "expired", False)], [], []]
        for handle in handles:
            node.remove(handle)


# Rechecks


async def test_a_connection_says_how_it_is_rechecked_and_catches_up() -> None:
    checked = asyncio.Event()

    async def check() -> None:
        checked.set()

    async with running(FakeServer()) as node:
        handle = Handle(node, "1", Receiver(None), LIMITS)  # type: ignore[arg-type]
        # An own endpoint's, which has nothing to check.
        await handle.recheck()
        before = node.rechecks.count
        handle.recheck_with(check, before)
        async with asyncio.timeout(DEADLINE):
            await node.command(Recheck("ann"))
            while node.rechecks.count == before:  # noqa: ASYNC110 (until the command has come)
                await asyncio.sleep(0)
            # It has found no such connection: the node does not have this one yet.
            assert not checked.is_set()
            handle.recheck_with(check, before)
            await checked.wait()
