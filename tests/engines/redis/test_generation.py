"""Streams on a server that was restarted or replaced: whether earlier positions are still valid."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from redis import Redis

from hubbub.channels.declaration import ChannelDeclaration
from hubbub.core.publication import START, Position
from hubbub.engines.redis import RedisEngine, supervisor
from hubbub.exceptions import Unrecoverable
from hubbub.node.node import Node
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.redis.nodes import accepted, running, until
from tests.engines.redis.server import RedisServer, redis_server
from tests.proxy import Proxy
from tests.subscriber import Subscriber

#: Options of a server that only writes snapshots, and loses later changes.
SNAPSHOTS = ("appendonly", "no")


async def publish(engine: RedisEngine, first: int, last: int) -> Position:
    """Publish the numbers from ``first`` to ``last``."""
    position = START
    for number in range(first, last + 1):
        position = await engine.publish(publication("chat", str(number)), HISTORY)
    return position


def restart(server: RedisServer) -> None:
    server.kill()
    server.start()


async def resume(url: str, since: Position) -> list[str]:
    """Return the publications for a client that resumes on a new node.

    :raises Unrecoverable: publications are lost.
    """
    node = Node(RedisEngine(url), lambda name: ChannelDeclaration(name, HISTORY))
    subscriber = Subscriber()
    await node.start()
    try:
        await node.join("chat", subscriber, since)
        return subscriber.received
    finally:
        await node.stop(1001, "", 0)


@asynccontextmanager
async def late(server: RedisServer) -> AsyncIterator[tuple[RedisEngine, Collector, Proxy]]:
    """An engine that the test can keep from reconnecting before others do."""
    async with Proxy(server.port) as proxy, running(f"redis://127.0.0.1:{proxy.port}") as (engine, collector):
        yield engine, collector, proxy


def disconnect(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


async def reconnect(proxy: Proxy, collector: Collector) -> None:
    proxy.accept()
    await collector.until(lambda: collector.reconnects == 1)


# Losses are reported


@pytest.mark.parametrize("first", ["client", "publisher", "worker without the channel"])
async def test_a_client_that_resumes_from_an_older_state_is_notified(first: str) -> None:
    """Also where no worker had the channel open, and whichever is the first to use it."""
    with redis_server(*SNAPSHOTS) as server:
        async with running(server.url) as (bystander, seen):
            async with running(server.url) as (engine, _):
                await publish(engine, 1, 5)
                with server.client() as client:
                    client.save()
                top = await publish(engine, 6, 10)
            restart(server)
            await seen.until(lambda: seen.reconnects == 1)
            if first == "publisher":
                async with running(server.url) as (publisher, _):
                    for number in range(10):
                        await publisher.publish(publication("chat", f"new {number}"))
            elif first == "worker without the channel":
                for number in range(10):
                    await bystander.publish(publication("chat", f"new {number}"))
            for since in (top, Position(3, top.epoch)):
                with pytest.raises(Unrecoverable):
                    await resume(server.url, since)
            # The remaining publications can be read, in a new epoch.
            page = await bystander.history("chat")
            texts = [each.data.decode() for each in page.publications]
            assert texts[:5] == ["1", "2", "3", "4", "5"]
            assert await resume(server.url, Position(4, page.position.epoch)) == texts[4:]


@pytest.mark.parametrize("published", [0, 3, 5, 7])
async def test_a_node_that_knows_of_a_lost_publication_begins_a_new_epoch(published: int) -> None:
    """Also on a server that syncs always, whose files were replaced by older ones.

    And also if others have published meanwhile, so that there is another publication at the node's position.
    """
    with redis_server("appendfsync", "always") as server:
        async with late(server) as (engine, collector, proxy):
            await engine.subscribe("chat", HISTORY)
            await publish(engine, 1, 5)
            older = server.back_up()
            top = await publish(engine, 6, 10)
            disconnect(proxy)
            server.kill()
            server.restore(older)
            server.start()
            async with running(server.url) as (publisher, _):
                await publish(publisher, 101, 100 + published)
                await reconnect(proxy, collector)
                with pytest.raises(Unrecoverable):
                    await resume(server.url, top)
                # The remaining publications are one run, for all nodes.
                offset, epoch = (await engine.history("chat", limit=0)).position
                assert offset == 5 + published
                assert epoch != top.epoch
                assert await publish(publisher, 200, 200) == (offset + 1, epoch)
                assert await resume(server.url, Position(offset, epoch)) == ["200"]


async def test_a_replica_that_takes_over_without_the_latest_begins_a_new_epoch(server: RedisServer) -> None:
    with redis_server("replicaof", f"127.0.0.1 {server.port}") as replica:
        async with running(server.url) as (engine, _):
            await publish(engine, 1, 5)
            with server.client() as client:
                assert client.wait(1, 10_000) == 1
            with replica.client() as client:
                client.replicaof("NO", "ONE")
            top = await publish(engine, 6, 10)
        async with running(replica.url) as (engine, _):
            await publish(engine, 106, 112)
        with pytest.raises(Unrecoverable):
            await resume(replica.url, top)


async def test_a_restart_of_a_server_with_a_replica_is_not_trusted() -> None:
    """The replica may have taken over meanwhile, and may be the server at this address."""
    with ExitStack() as stack:
        server = stack.enter_context(redis_server("appendfsync", "always"))
        stack.enter_context(redis_server("replicaof", f"127.0.0.1 {server.port}"))
        client = stack.enter_context(server.client())
        await until(lambda: info(client)["connected_slaves"] == 1)
        async with running(server.url) as (engine, _):
            top = await publish(engine, 1, 3)
        restart(server)
        with pytest.raises(Unrecoverable):
            await resume(server.url, top)


async def test_a_restart_is_not_trusted_after_a_publication_while_the_server_did_not_sync() -> None:
    with redis_server("appendfsync", "always") as server:
        async with running(server.url) as (engine, _):
            await publish(engine, 1, 3)
        with server.client() as client:
            client.config_set("appendfsync", "everysec")
        async with running(server.url) as (publisher, _):
            top = await publish(publisher, 4, 4)
        restart(server)
        with pytest.raises(Unrecoverable):
            await resume(server.url, top)


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_restart_of_a_server_that_has_had_a_replica_is_not_trusted(is_there: bool) -> None:
    """The first replica begins another generation; a later one does not."""
    with redis_server("appendfsync", "always") as server:
        async with running(server.url) as (engine, _):
            await publish(engine, 1, 3)
        with redis_server("replicaof", f"127.0.0.1 {server.port}"), server.client() as client:
            await until(lambda: info(client)["connected_slaves"] == 1)
            if is_there:
                async with running(server.url) as (engine, _):
                    top = await publish(engine, 4, 4)
        if not is_there:
            with server.client() as client:
                await until(lambda: info(client)["connected_slaves"] == 0)
            async with running(server.url) as (engine, _):
                top = await publish(engine, 4, 4)
        restart(server)
        with pytest.raises(Unrecoverable):
            await resume(server.url, top)


def info(client: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.info("replication")
    return found


# Positions are kept


async def test_an_ordinary_restart_of_a_server_that_syncs_always_keeps_positions() -> None:
    """Also without any node."""
    with redis_server("appendfsync", "always") as server:
        async with running(server.url) as (engine, _):
            top = await publish(engine, 1, 3)
        for number in (4, 5):
            restart(server)
            async with running(server.url) as (publisher, _):
                assert await publish(publisher, number, number) == (number, top.epoch)
            assert await resume(server.url, Position(2, top.epoch)) == [str(n) for n in range(3, number + 1)]


@pytest.mark.parametrize("seen", [3, 2, 0])
async def test_a_node_that_finds_its_last_publication_keeps_positions(server: RedisServer, seen: int) -> None:
    """Also if others have published later. The server syncs sometimes, or never."""
    async with running(server.url) as (other, _), late(server) as (engine, collector, proxy):
        top, _ = await engine.subscribe("chat", HISTORY)
        if seen:
            top = await publish(engine, 1, seen)
        disconnect(proxy)
        await collector.until(lambda: collector.disconnects == 1)
        await accepted(other, "unheard", HISTORY)
        restart(server)
        # Published before the node has reconnected. But only readers decide whether the stream is complete.
        await accepted(other, "published first")
        await reconnect(proxy, collector)
        assert await resume(server.url, top) == ["unheard", "published first"]
        assert (await engine.subscribe("chat", HISTORY)).position.epoch == top.epoch


async def test_a_node_whose_last_publication_has_expired_keeps_positions(
    server: RedisServer,
) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        top = await publish(engine, 1, 3)
        with server.client() as client:
            assert client.delete("hubbub:{chat}:log") == 1
        restart(server)
        await collector.until(lambda: collector.reconnects == 1)
        assert (await engine.history("chat", limit=0)).position == top


# All nodes agree


async def test_a_node_that_reconnects_later_takes_the_epoch_that_was_begun(server: RedisServer) -> None:
    async with late(server) as (engine, collector, proxy):
        await engine.subscribe("chat", HISTORY)
        before = await publish(engine, 1, 3)
        disconnect(proxy)
        restart(server)
        async with running(server.url) as (other, _):
            # This node has nothing to compare with.
            begun, _ = await other.subscribe("chat", HISTORY)
            assert begun.epoch != before.epoch
            await reconnect(proxy, collector)
            answers = [await each.publish(publication("chat", "new")) for each in (engine, other, engine)]
            assert answers == [(offset, begun.epoch) for offset in (4, 5, 6)]
            for each in (engine, other):
                assert (await each.history("chat", limit=0)).position == answers[-1]


async def test_many_nodes_that_start_at_once_begin_one_epoch() -> None:
    with redis_server() as server:
        async with running(server.url) as (engine, _):
            before = await publish(engine, 1, 3)
        restart(server)

        async def subscribe() -> Position:
            async with running(server.url) as (engine, _):
                position = (await engine.subscribe("chat", HISTORY)).position
                assert position == (await engine.history("chat", limit=0)).position
                return position

        positions = set(await asyncio.gather(*(subscribe() for _ in range(10))))
        assert len(positions) == 1
        assert positions != {before}


async def test_a_node_that_has_not_noticed_a_new_generation_keeps_the_new_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server may be in another generation although its connections stand."""
    monkeypatch.setattr(supervisor, "PING_INTERVAL", 1000.0)
    with redis_server("enable-debug-command", "yes") as server:
        async with running(server.url) as (stale, _):
            before = await publish(stale, 1, 3)
            with server.client() as client:
                client.execute_command("DEBUG", "CHANGE-REPL-ID")
            # It is unknown whether a publication was lost by it.
            async with running(server.url) as (fresh, _):
                begun, _ = await fresh.subscribe("chat", HISTORY)
                assert begun.epoch != before.epoch
                for engine in (stale, fresh, stale):
                    assert (await engine.history("chat", limit=0)).position.epoch == begun.epoch
                    assert (await engine.publish(publication("chat", "new"))).epoch == begun.epoch


@pytest.mark.usefixtures("impatient")
async def test_streams_are_compared_if_a_server_changes_while_it_is_connected() -> None:
    with redis_server("enable-debug-command", "yes") as server:
        async with running(server.url) as (engine, collector):
            await engine.subscribe("chat", HISTORY)
            before = await publish(engine, 1, 3)
            with server.client() as client:
                client.execute_command("DEBUG", "CHANGE-REPL-ID")
            await collector.until(lambda: collector.reconnects == 1)
            assert await resume(server.url, before) == []


async def test_nodes_that_find_a_stream_set_back_begin_one_epoch(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, _), running(redis_url, namespace) as (other, _):
        before = await publish(engine, 1, 3)
        await asyncio.gather(*(each.renew_epoch("chat", before.epoch) for each in (engine, other)))
        begun = (await engine.history("chat", limit=0)).position
        assert begun.offset == 3
        assert begun.epoch != before.epoch
        # Too late, or for a channel without a stream.
        await other.renew_epoch("chat", before.epoch)
        await other.renew_epoch("never", before.epoch)
        page = await other.history("chat")
        assert page.position == begun
        # No publication is removed.
        assert [each.position for each in page.publications] == [(n, begun.epoch) for n in (1, 2, 3)]
        assert (await engine.tops(["chat"]))[0].id == page.publications[-1].id


# Older versions, and users with fewer rights


async def test_streams_of_older_versions_are_taken_over(redis_url: str, namespace: str) -> None:
    """They have no id of the newest publication, until there is another one.

    Also while older workers still publish.
    """
    async with running(redis_url, namespace) as (engine, _):
        before = await publish(engine, 1, 3)
        meta = f"{namespace}:{{chat}}:meta"
        with Redis.from_url(redis_url) as client:
            assert client.hdel(meta, "newest", "generation") == 2
            assert await engine.tops(["chat"]) == [(before, "")]
            assert await engine.subscribe("chat", HISTORY) == (before, "")
            assert client.hget(meta, "generation")
            newest = publication("chat", "4")
            top = await engine.publish(newest, HISTORY)
            assert await engine.tops(["chat"]) == [(top, newest.id)]
            # As an older script does.
            client.hset(meta, "offset", 5)
            assert await engine.tops(["chat"]) == [((5, top.epoch), "")]
            assert (await engine.subscribe("chat", HISTORY)).id == ""


async def test_a_user_without_the_right_to_read_the_generation_changes_nothing() -> None:
    with redis_server() as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "poor", "on", ">secret", "~*", "&*", "+@all", "-info")
        async with running(server.url) as (engine, _):
            before = await publish(engine, 1, 3)
        poor = server.url.replace("redis://", "redis://poor:secret@")
        async with running(poor) as (engine, _):
            assert (await engine.subscribe("chat", HISTORY)).position == before
            assert await publish(engine, 4, 4) == (4, before.epoch)
            await engine.publish(publication("other", "1"), HISTORY)
        async with running(server.url) as (engine, _):
            assert (await engine.subscribe("chat", HISTORY)).position == (4, before.epoch)
            assert (await engine.subscribe("other", HISTORY)).position.offset == 1


async def test_a_stream_that_cannot_be_compared_does_not_prevent_reconnecting(
    server: RedisServer,
) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        before = await publish(engine, 1, 3)
        await engine.subscribe("plain")
        server.options = ("maxmemory", "1")
        restart(server)
        await collector.until(lambda: collector.reconnects == 1)
        await engine.publish(publication("plain", "heard"))
        await collector.heard("plain", ["heard"])
        with server.client() as client:
            client.config_set("maxmemory", 0)
        # A stream that was not compared is not trusted.
        assert (await engine.history("chat", limit=0)).position.epoch != before.epoch
