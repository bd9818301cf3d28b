"""Sentinels, which know the primary and replace it."""

from __future__ import annotations

import pytest

from hubbub.engines.redis import RedisEngine
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.redis.nodes import accepted, running, until
from tests.engines.redis.server import RedisServer, redis_sentinel, redis_server
from tests.uvicorn_process import free_port


async def test_the_replica_that_the_sentinels_choose_takes_over_for_a_killed_primary(
    server: RedisServer,
) -> None:
    with redis_server("replicaof", f"127.0.0.1 {server.port}") as replica:
        with replica.client() as client:
            await until(lambda: client.info("replication")["master_link_status"] == "up")
        with redis_sentinel(server.port) as sentinel:
            # The first sentinel does not exist.
            url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/service0/0"
            async with running(url) as (engine, collector):
                await engine.subscribe("chat", HISTORY)
                before = await engine.publish(publication("chat", "before"), HISTORY)
                with server.client() as client:
                    assert client.wait(1, 10_000) == 1
                with sentinel.client() as client:
                    await until(lambda: client.sentinel_slaves("service0"))
                server.kill()
                after = await accepted(engine, "after", HISTORY)
                assert after == (before.offset + 1, before.epoch)
                assert collector.reconnects >= 1
                await collector.heard("chat", ["before", "after"])


async def test_a_service_that_the_sentinels_do_not_know_is_refused(server: RedisServer) -> None:
    with redis_sentinel(server.port) as sentinel:
        engine = RedisEngine(f"redis+sentinel://127.0.0.1:{sentinel.port}/other")
        with pytest.raises(EngineUnavailable, match=r"the sentinels at 127\.0\.0\.1:.*other"):
            await engine.start(Collector())
