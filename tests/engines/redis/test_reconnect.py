"""Outages: servers that are lost, and found again with or without their data."""

from __future__ import annotations

import asyncio
import logging

import pytest

from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.history import History
from hubbub.core.publication import START, Position
from hubbub.engines.redis import RedisEngine
from hubbub.exceptions import EngineUnavailable
from hubbub.node.node import Node
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.clients import DEADLINE
from tests.engines.redis.nodes import accepted, rejection, running
from tests.engines.redis.server import RedisServer
from tests.subscriber import Subscriber


async def test_a_server_that_restarts_with_its_data_continues_the_stream(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        before = await engine.publish(publication("chat", "before"), HISTORY)
        await collector.heard("chat", ["before"])
        server.kill()
        server.start()
        await collector.until(lambda: collector.reconnects == 1)
        after = await engine.publish(publication("chat", "after"), HISTORY)
        assert after == (before.offset + 1, before.epoch)
        await collector.heard("chat", ["before", "after"])


async def test_a_server_that_restarts_without_its_data_begins_a_new_epoch(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        before, _ = await engine.subscribe("chat", HISTORY)
        await engine.publish(publication("chat", "before"), HISTORY)
        await collector.heard("chat", ["before"])
        server.kill()
        server.forget()
        server.start()
        await collector.until(lambda: collector.reconnects == 1)
        # Declared again, also for publishers that do not know of the history.
        assert (await engine.history("chat", limit=0)).position.offset == 0
        after = await engine.publish(publication("chat", "after"))
        assert after.offset == 1
        assert after.epoch != before.epoch
        await collector.heard("chat", ["before", "after"])


async def test_publishers_that_do_not_know_of_a_history_find_it_after_data_was_lost(
    server: RedisServer,
) -> None:
    async with running(server.url) as (engine, collector), running(server.url) as (publisher, seen):
        for name in ("chat", "plain"):
            await engine.subscribe(name, HISTORY if name == "chat" else None)
        # The last declaration counts; and a channel without one may have been seen with a stream.
        await engine.subscribe("chat", History(size=2, ttl=60))
        await engine.subscribe("seen")
        await publisher.publish(publication("seen", "before"), HISTORY)
        server.kill()
        server.forget()
        server.start()
        await collector.until(lambda: collector.reconnects == 1 and seen.reconnects == 1)
        offsets = [(await publisher.publish(publication("chat", str(n)))).offset for n in range(4)]
        assert offsets == [1, 2, 3, 4]
        assert len((await engine.history("chat")).publications) == 2
        assert await publisher.publish(publication("plain", "0")) == START
        # Its history was never declared to this engine.
        assert await publisher.publish(publication("seen", "0")) == START


async def test_subscribing_again_declares_a_history_that_was_flushed(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector), running(server.url) as (publisher, _):
        before, _ = await engine.subscribe("chat", HISTORY)
        with server.client() as client:
            client.flushall()
        assert await publisher.publish(publication("chat", "1")) == START
        after, _ = await engine.subscribe("chat", HISTORY)
        assert after.epoch != before.epoch
        assert await publisher.publish(publication("chat", "2")) == (1, after.epoch)
        await collector.heard("chat", ["1", "2"])


async def test_subscribing_again_without_success_keeps_the_subscription(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        with server.frozen(), pytest.raises(EngineUnavailable):
            await engine.subscribe("chat", HISTORY)
        await accepted(engine, "heard", HISTORY)
        await collector.until(lambda: "heard" in collector.texts("chat"))


@pytest.mark.parametrize("keeps_data", [True, False])
async def test_subscribers_are_notified_when_the_server_has_lost_publications_that_they_received(
    server: RedisServer, keeps_data: bool
) -> None:
    node, subscriber = (
        Node(RedisEngine(server.url), lambda name: ChannelDeclaration(name, HISTORY)),
        Subscriber(),
    )
    await node.start()
    async with running(server.url) as (other, collector):
        await node.join("chat", subscriber)
        before = await node.publish(publication("chat", "before"))
        server.kill()
        if not keeps_data:
            server.forget()
        server.start()
        # Published by another node, maybe before this one has reconnected.
        await collector.until(lambda: collector.reconnects == 1)
        top = await accepted(other, "after", HISTORY)
        await collector.until(lambda: node.position("chat") == top)
        if keeps_data:
            await collector.until(lambda: len(subscriber.received) == 2)
            assert subscriber.breaks == []
        else:
            assert [position.epoch != before.epoch for position in subscriber.breaks] == [True]
    await node.stop(1001, "", 0)


async def test_publications_during_an_outage_fail_in_bounded_time(
    server: RedisServer,
) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat")
        server.kill()
        message = await rejection(engine)
        assert f"127.0.0.1:{server.port}" in message
        # Also now that the outage is known; and all calls, however many.
        async with asyncio.timeout(DEADLINE):
            answers = await asyncio.gather(
                *(engine.publish(publication("chat", str(n))) for n in range(100)),
                engine.history("chat"),
                engine.subscribe("other"),
                return_exceptions=True,
            )
        assert {type(answer) for answer in answers} == {EngineUnavailable}
        server.start()
        await collector.until(lambda: collector.reconnects == 1)
        await engine.publish(publication("chat", "back"))
        await engine.publish(publication("other", "not subscribed to"))
        await collector.heard("chat", ["back"])
        assert collector.texts("other") == []


async def test_calls_wait_for_a_server_that_restarts(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        server.kill()
        await collector.until(lambda: collector.disconnects == 1)
        waiting = [
            asyncio.create_task(engine.publish(publication("chat", str(n)), HISTORY)) for n in range(9)
        ]
        subscribing = asyncio.create_task(engine.subscribe("late"))
        await asyncio.sleep(0)
        waiting[4].cancel()
        server.start()
        async with asyncio.timeout(DEADLINE):
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            await subscribing
        assert isinstance(answers.pop(4), asyncio.CancelledError)
        assert [answer[0] for answer in answers if isinstance(answer, Position)] == list(range(1, 9))
        await engine.publish(publication("late", "heard"))
        await collector.heard("late", ["heard"])


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_does_not_answer_any_more_is_noticed(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat")
        with server.frozen():
            assert "Redis" in await rejection(engine)
            # Also without any call, and although new connections are accepted.
            await collector.until(lambda: collector.disconnects == 1)
            assert "Redis" in await rejection(engine)
        await collector.until(lambda: collector.reconnects == 1)
        await accepted(engine, "back")
        await collector.until(lambda: "back" in collector.texts("chat"))


async def test_connections_that_the_server_closes_are_opened_again(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat")
        with server.client() as client:
            for number, kind in enumerate(("pubsub", "normal"), 1):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
                await collector.until(lambda number=number: collector.reconnects == number)  # type: ignore[misc]
                await engine.publish(publication("chat", kind))
        await collector.heard("chat", ["pubsub", "normal"])


async def test_many_channels_are_subscribed_to_again(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await asyncio.gather(*(engine.subscribe(f"room:{n}") for n in range(1200)))
        server.kill()
        server.start()
        await collector.until(lambda: collector.reconnects == 1)
        for number in (0, 500, 1199):
            await engine.publish(publication(f"room:{number}", "hello"))
            await collector.heard(f"room:{number}", ["hello"])


class FailingNode(Collector):
    """A node that records outages, and raises an exception for each report."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[str] = []

    def on_disconnect(self, reason: str) -> None:
        super().on_disconnect(reason)
        self.reports.append(reason)
        raise RuntimeError("a node that fails")

    def on_reconnect(self) -> None:
        super().on_reconnect()
        self.reports.append("back")
        raise RuntimeError("a node that fails")


async def test_the_beginning_and_the_end_of_an_outage_are_reported_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    engine, node = RedisEngine(server.url), FailingNode()
    await engine.start(node)
    for number in (1, 2):
        server.kill()
        await node.until(lambda number=number: node.disconnects == number)  # type: ignore[misc]
        assert await engine.inspect() == ()
        with caplog.at_level(logging.INFO):
            caplog.clear()
            # Attempts to reconnect have failed.
            await node.until(lambda: caplog.text.count("; retrying.") >= 2)
        server.start()
        await node.until(lambda number=number: node.reconnects == number)  # type: ignore[misc]
        await engine.publish(publication("chat", "taken"))
    await engine.stop()
    assert node.reports[1::2] == ["back", "back"]
    assert [f"127.0.0.1:{server.port}" in reason for reason in node.reports[::2]] == [True, True]


async def test_a_stop_during_an_outage_is_not_reported(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        server.kill()
        await collector.until(lambda: collector.disconnects == 1)
        await engine.stop()
        server.start()
        await engine.start(collector)
        await engine.publish(publication("chat", "taken"))
    assert (collector.disconnects, collector.reconnects) == (1, 0)


async def test_internal_channels_work_like_all_others(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, collector):
        for name in ("\x01control", "\x01presence:room:1"):
            await engine.subscribe(name, HISTORY)
            assert (await engine.publish(publication(name, name), HISTORY, "key")).offset == 1
            await collector.heard(name, [name])
            assert [each.channel for each in (await engine.history(name)).publications] == [name]
        assert await engine.history("control") == ([], START)
