"""The outage loop, on a clock that stands still and without a server."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

import pytest

from hubbub.engines import reconnect
from hubbub.engines.reconnect import RETRY_MAX, RETRY_MIN, Backoff, Outage, Reconnector
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import Collector
from tests.clock import TURNS, FakeClock

REFUSED = EngineUnavailable("Could not connect to Nowhere (refused).")


@pytest.fixture(autouse=True)
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pauses are as long as they may be."""
    monkeypatch.setattr(reconnect, "random", lambda: 1.0)


# Backoff


def test_pauses_double_up_to_the_longest_and_begin_again_after_a_reset() -> None:
    backoff = Backoff()
    pauses = [backoff.pause() for _ in range(9)]
    assert pauses[:4] == [RETRY_MIN, RETRY_MIN * 2, RETRY_MIN * 4, RETRY_MIN * 8]
    assert pauses[-2:] == [RETRY_MAX, RETRY_MAX]
    backoff.reset()
    assert backoff.pause() == RETRY_MIN


def test_pauses_are_random_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "random", lambda: 0.5)
    assert Backoff(first=4.0, longest=4.0).pause() == 2.0


def test_pauses_can_be_of_one_length() -> None:
    backoff = Backoff(first=0.25, longest=0.25)
    assert [backoff.pause() for _ in range(3)] == [0.25] * 3


async def test_hope_ends_a_pause() -> None:
    hope = asyncio.Event()
    waiting = asyncio.ensure_future(Backoff(first=3600.0, longest=3600.0).wait(hope))
    await settle()
    assert not waiting.done()
    hope.set()
    await waiting


async def test_a_pause_ends_without_hope() -> None:
    await Backoff(first=0.001).wait(asyncio.Event())
    await Backoff(first=0.001).wait()


# Outage


class Reports:
    """The reports of an outage, in order."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.reported: list[str] = []
        self.outage = Outage(
            "Nowhere", self.reported.append, lambda: self.reported.append("back"), clock=self.clock
        )


def test_an_outage_is_reported_once_however_many_attempts_fail(caplog: pytest.LogCaptureFixture) -> None:
    reports = Reports()
    outage = reports.outage
    outage.connected()
    assert (outage.is_under_way, outage.error, reports.reported) == (False, "", [])
    with caplog.at_level(logging.INFO):
        outage.lost("connection reset.")
        assert (outage.is_under_way, outage.error) == (True, "Lost Nowhere (connection reset).")
        outage.lost("again")
        assert outage.error == "Lost Nowhere (connection reset)."
        outage.failed(EngineUnavailable("Nowhere cannot be used: connection refused"))
        for _ in range(2):
            outage.failed(REFUSED)
        assert outage.error == str(REFUSED)
        reports.clock.advance(3.25)
        outage.connected()
    assert (outage.is_under_way, outage.error) == (False, "")
    assert reports.reported == ["Lost Nowhere (connection reset); reconnecting.", "back"]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Lost Nowhere (connection reset); reconnecting."),
        ("INFO", "Nowhere cannot be used: connection refused; retrying."),
        *[("INFO", "Could not connect to Nowhere (refused); retrying.")] * 2,
        ("INFO", "Reconnected to Nowhere after 3.2 s."),
    ]


def test_what_was_not_expected_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    reports = Reports()
    reports.outage.lost(LookupError("a mistake"))
    reports.outage.failed(LookupError())
    assert reports.reported == ["Lost Nowhere (LookupError: a mistake); reconnecting."]
    assert reports.outage.error == "Could not reconnect to Nowhere (LookupError)."
    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records] == [("ERROR", True)] * 2


def test_a_second_outage_is_reported_too() -> None:
    reports = Reports()
    for _ in range(2):
        reports.outage.lost("gone")
        reports.outage.connected()
    assert len(reports.reported) == 4


def test_pauses_begin_again_only_after_the_server_was_connected_for_a_while() -> None:
    reports = Reports()
    outage = reports.outage
    pauses = []
    for seconds in (RETRY_MAX, RETRY_MAX, RETRY_MAX + 0.1):
        reports.clock.advance(seconds)
        outage.lost("gone")
        pauses.append(outage.pause())
        outage.connected()
    assert pauses == [RETRY_MIN, RETRY_MIN * 2, RETRY_MIN]


# Reconnector


class Line:
    """A way to a server, which is lost when a test says so.

    A step is an await of the loop. A test may have one of them wait, to do something meanwhile, and fail.
    """

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.sink = Collector()
        #: The exceptions that the next calls of a step raise.
        self.errors: defaultdict[str, list[Exception]] = defaultdict(list)
        self.steps: list[str] = []
        self.waits_at = ""
        self.cancelled_at = ""
        self.go_on = asyncio.Event()
        self.lost: asyncio.Future[str] | None = None
        self.reconnector = Reconnector(
            "Nowhere", self.connect, self.serve, self.restore, clock=self.clock, sleep=self.sleep
        )

    async def step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.waits_at:
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.cancelled_at = name
                raise
        if self.errors[name]:
            raise self.errors[name].pop(0)

    async def connect(self) -> None:
        await self.step("connect")

    async def serve(self) -> str:
        self.lost = asyncio.get_running_loop().create_future()
        await self.step("serve")
        return await self.lost

    async def restore(self) -> None:
        await self.step("restore")

    async def sleep(self, seconds: float) -> None:
        await self.step("sleep")
        self.clock.advance(seconds)

    async def lose(self, reason: str = "gone") -> None:
        await settle()
        assert self.lost is not None
        self.lost.set_result(reason)
        self.lost = None
        await settle()

    @property
    def reports(self) -> tuple[int, int]:
        return self.sink.disconnects, self.sink.reconnects


async def settle() -> None:
    """Let tasks do all there is to do."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_it_connects_serves_and_connects_again() -> None:
    line = Line()
    await line.reconnector.start(line.sink)
    assert line.reconnector.is_connected.is_set()
    line.errors["connect"] += [REFUSED, REFUSED]
    await line.lose()
    assert line.reports == (1, 1)
    assert line.steps == [
        *("connect", "serve"),
        *("sleep", "connect", "sleep", "connect", "sleep", "connect", "restore", "serve"),
    ]
    assert line.clock() == pytest.approx(RETRY_MIN * (1 + 2 + 4))
    await line.reconnector.stop()
    assert line.reports == (1, 1)


async def test_a_first_connection_that_fails_starts_nothing() -> None:
    line = Line()
    line.errors["connect"].append(REFUSED)
    with pytest.raises(EngineUnavailable, match="refused"):
        await line.reconnector.start(line.sink)
    await settle()
    assert line.steps == ["connect"]
    assert not line.reconnector.is_connected.is_set()
    # It may be tried again.
    await line.reconnector.start(line.sink)
    await line.lose()
    assert line.reports == (1, 1)
    await line.reconnector.stop()


async def test_callers_that_wait_continue_before_the_node_is_notified() -> None:
    line = Line()
    await line.reconnector.start(line.sink)
    line.errors["connect"].append(REFUSED)
    line.waits_at = "sleep"
    await line.lose()
    waiting = asyncio.ensure_future(line.reconnector.is_connected.wait())
    await settle()
    assert not waiting.done()
    assert line.reconnector.error == "Lost Nowhere (gone)."
    line.waits_at = "restore"
    line.go_on.set()
    line.go_on.clear()
    await waiting
    await settle()
    assert line.steps[-1] == "restore"
    assert line.reports == (1, 0)
    line.go_on.set()
    await settle()
    assert (line.reports, line.reconnector.error) == ((1, 1), "")
    await line.reconnector.stop()


@pytest.mark.parametrize("error", [REFUSED, LookupError("a mistake")], ids=["expected", "mistake"])
@pytest.mark.parametrize("where", ["connect", "serve", "restore"])
async def test_no_exception_ends_the_loop(where: str, error: Exception) -> None:
    line = Line()
    await line.reconnector.start(line.sink)
    line.errors[where].append(error)
    if where != "serve":
        await line.lose()
    await settle()
    assert line.errors[where] == []
    assert line.reports == (1, 1)
    assert line.reconnector.is_connected.is_set()
    await line.lose()
    assert line.reports == (2, 2)
    await line.reconnector.stop()


async def test_callers_wait_again_where_restoring_fails() -> None:
    line = Line()
    await line.reconnector.start(line.sink)
    line.errors["restore"].append(REFUSED)
    line.waits_at = "restore"
    await line.lose()
    assert line.reconnector.is_connected.is_set()
    line.waits_at = "sleep"
    line.go_on.set()
    line.go_on.clear()
    await settle()
    assert line.steps[-2:] == ["restore", "sleep"]
    assert not line.reconnector.is_connected.is_set()
    assert line.reports == (1, 0)
    line.go_on.set()
    await settle()
    assert line.reports == (1, 1)
    await line.reconnector.stop()


@pytest.mark.parametrize("where", ["sleep", "connect", "restore", "serve"])
async def test_it_stops_wherever_it_is(where: str) -> None:
    line = Line()
    await line.reconnector.start(line.sink)
    await settle()
    line.waits_at = where
    await line.lose()
    assert line.steps[-1] == where
    reports = line.reports
    await line.reconnector.stop()
    assert line.cancelled_at == where
    assert not line.reconnector.is_connected.is_set()
    line.go_on.set()
    await settle()
    # Neither is the node notified of anything that comes after.
    assert line.steps[-1] == where
    assert line.reports == reports
    await line.reconnector.stop()


async def test_it_stops_before_it_has_begun() -> None:
    line = Line()
    await line.reconnector.stop()
    await line.reconnector.start(line.sink)
    await line.reconnector.stop()
    assert (line.steps, line.reports) == (["connect"], (0, 0))


async def test_a_start_that_is_cancelled_starts_nothing() -> None:
    line = Line()
    line.waits_at = "connect"
    starting = asyncio.ensure_future(line.reconnector.start(line.sink))
    await settle()
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    await settle()
    assert (line.steps, line.cancelled_at) == (["connect"], "connect")
    assert not line.reconnector.is_connected.is_set()


async def test_it_can_be_started_again_after_an_outage_that_was_under_way() -> None:
    line = Line()
    await line.reconnector.start(line.sink)
    line.waits_at = "sleep"
    await line.lose()
    await line.reconnector.stop()
    line.waits_at = ""
    after = Collector()
    await line.reconnector.start(after)
    assert line.reconnector.error == ""
    await settle()
    assert (line.reports, after.disconnects, after.reconnects) == ((1, 0), 0, 0)
    await line.reconnector.stop()


class FailingNode(Collector):
    def on_disconnect(self, reason: str) -> None:
        super().on_disconnect(reason)
        raise RuntimeError("a node that fails")

    def on_reconnect(self) -> None:
        super().on_reconnect()
        raise RuntimeError("a node that fails")


async def test_a_node_that_fails_does_not_keep_it_from_reconnecting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    line = Line()
    line.sink = FailingNode()
    await line.reconnector.start(line.sink)
    for _ in range(2):
        await line.lose()
    assert line.reports == (2, 2)
    assert line.reconnector.is_connected.is_set()
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"] * 4
    await line.reconnector.stop()
