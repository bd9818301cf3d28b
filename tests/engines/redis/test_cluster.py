"""Clusters: channels are on different nodes, which fail over and move."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from redis import Redis
from redis.crc import key_slot

from hubbub.engines.base import PresenceChange
from hubbub.engines.redis import RedisEngine
from hubbub.engines.redis.topology import SLOTS
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.clients import DEADLINE
from tests.engines.redis.nodes import accepted, is_caught_up, rejection, running, until
from tests.engines.redis.server import RedisServer, redis_cluster


async def test_channels_are_spread_over_a_cluster(redis_cluster_url: str, namespace: str) -> None:
    async with running(redis_cluster_url, namespace) as (engine, collector):
        channels = [f"room:{number}" for number in range(30)]
        await asyncio.gather(*(engine.subscribe(channel, HISTORY) for channel in channels))
        await asyncio.gather(
            *(engine.publish(publication(channel, channel), HISTORY, "key") for channel in channels)
        )
        for channel in channels:
            await collector.heard(channel, [channel])
        primaries = {
            each.text.rpartition(" at ")[2] for each in await engine.inspect() if " at " in each.text
        }
        assert len(primaries) == 3
        for primary in primaries:
            # Each has some of the keys.
            with Redis.from_url(f"redis://{primary}") as client:
                assert client.keys(f"{namespace}:*") != []


async def test_a_node_of_a_cluster_that_is_killed_and_started_again(namespace: str) -> None:
    with redis_cluster() as servers:
        url = f"redis+cluster://127.0.0.1:{servers[0].port},127.0.0.1:{servers[1].port}"
        async with running(url, namespace) as (engine, collector):
            channels = [f"room:{number}" for number in range(30)]
            for channel in channels:
                await engine.subscribe(channel, HISTORY)
                await engine.publish(publication(channel, "1"), HISTORY)
            servers[0].kill()
            await collector.until(lambda: collector.disconnects == 1)
            # The engine cannot receive from its channels, so it does not publish either.
            assert "cluster" in await rejection(engine)
            servers[0].start()
            await collector.until(lambda: collector.reconnects >= 1)
            for channel in channels:
                async with asyncio.timeout(DEADLINE):
                    while True:
                        with suppress(EngineUnavailable):
                            position = await engine.publish(publication(channel, "2"), HISTORY)
                            break
                assert position.offset == 2
                await collector.heard(channel, ["1", "2"])


async def test_a_replica_in_a_cluster_takes_over_for_its_primary(namespace: str) -> None:
    with redis_cluster(replicas=1) as servers:
        async with running(f"redis+cluster://127.0.0.1:{servers[1].port}", namespace) as (engine, collector):
            channels = [f"room:{number}" for number in range(30)]
            before = {}
            for channel in channels:
                await engine.subscribe(channel, HISTORY)
                before[channel] = await engine.publish(publication(channel, "1"), HISTORY)
                await collector.heard(channel, ["1"])
            entered = [PresenceChange(channel, "a", b"data") for channel in channels]
            assert await engine.update_presence("one", 60, entered, begin=True)
            with servers[0].client() as client:
                await until(lambda: is_caught_up(client))
            servers[0].kill()
            await collector.until(lambda: collector.reconnects >= 1)
            found = {
                each.text.rpartition(" at ")[2] for each in await engine.inspect() if " at " in each.text
            }
            assert found == {f"127.0.0.1:{each.port}" for each in servers[1:]}
            for channel in channels:
                async with asyncio.timeout(DEADLINE):
                    while True:
                        with suppress(EngineUnavailable):
                            position = await engine.publish(publication(channel, "2"), HISTORY, "2")
                            break
                assert position == (2, before[channel].epoch)
                await collector.heard(channel, ["1", "2"])
                assert await engine.presence(channel) == {"a": b"data"}
            # It is unknown which entries the replica did not have yet: all are to be made again.
            assert not await engine.update_presence("one", 60)
            assert await engine.update_presence("two", 60, entered, begin=True)


async def test_a_slot_that_moves_to_another_node_is_followed(namespace: str) -> None:
    with redis_cluster(2) as servers:
        async with running(f"redis+cluster://127.0.0.1:{servers[0].port}", namespace) as (engine, collector):
            await engine.subscribe("chat")
            await engine.publish(publication("chat", "before"))
            await collector.heard("chat", ["before"])
            with servers[0].client() as first, servers[1].client() as second:
                ids = [client.execute_command("CLUSTER", "MYID") for client in (first, second)]
                slot = key_slot(b"chat")
                # Each has half of the slots.
                target = 0 if slot >= SLOTS // 2 else 1
                # First on its new node. There are no keys to migrate.
                for client in ((first, second), (second, first))[1 - target][::-1]:
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
            await collector.until(lambda: collector.reconnects >= 1)
            await accepted(engine, "after")
            await collector.heard("chat", ["before", "after"])


async def test_a_server_that_is_not_a_node_of_a_cluster_is_refused(server: RedisServer) -> None:
    engine = RedisEngine(f"redis+cluster://127.0.0.1:{server.port}")
    with pytest.raises(EngineUnavailable, match="cluster support disabled"):
        await engine.start(Collector())
