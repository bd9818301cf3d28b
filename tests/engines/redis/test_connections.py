"""The connections of an engine: writes, messages, order, TLS and sockets in the file system."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest
import trustme
from redis import Redis

from hubbub.engines.redis import RedisEngine
from hubbub.engines.redis.address import parse_url
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import HISTORY, Collector, publication
from tests.engines.redis.nodes import accepted, rejection, running
from tests.engines.redis.ports import Proxy, serving
from tests.engines.redis.server import RedisServer, redis_server


async def test_publications_of_one_turn_go_out_in_one_write(redis_url: str, namespace: str) -> None:
    proxy = Proxy(parse_url(redis_url).options["port"])
    async with serving(proxy.handle) as port, running(f"redis://127.0.0.1:{port}", namespace) as (engine, _):
        proxy.writes = 0
        answers = await asyncio.gather(
            *(engine.publish(publication("chat", str(n)), HISTORY) for n in range(100))
        )
        assert [answer.offset for answer in answers] == list(range(1, 101))
        # TCP may split the write. A round trip for each publication would be a hundred writes.
        assert proxy.writes < 10


@pytest.mark.usefixtures("impatient")
async def test_a_node_that_cannot_receive_does_not_publish(redis_url: str, namespace: str) -> None:
    proxy = Proxy(parse_url(redis_url).options["port"])
    async with (
        serving(proxy.handle) as port,
        running(f"redis://127.0.0.1:{port}", namespace) as (engine, seen),
    ):
        await engine.subscribe("chat")
        proxy.is_silencing = True
        await seen.until(lambda: seen.disconnects == 1)
        # The connection for commands works. A new listening connection could be opened, but would receive
        # nothing.
        assert "Redis" in await rejection(engine)
        proxy.is_silencing = False
        await seen.until(lambda: seen.reconnects == 1)
        await accepted(engine, "back")
        await seen.heard("chat", ["back"])


async def test_all_nodes_receive_publications_in_one_order(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as one, running(redis_url, namespace) as two:
        for engine, _ in (one, two):
            await engine.subscribe("chat")

        async def publish(engine: RedisEngine, name: str) -> None:
            for number in range(50):
                await engine.publish(publication("chat", f"{name}{number}"))

        await asyncio.gather(*(publish((one, two)[n % 2][0], f"{n}:") for n in range(8)))
        for _, collector in (one, two):
            await collector.until(lambda c=collector: len(c.publications) == 400)  # type: ignore[misc]
        assert one[1].texts("chat") == two[1].texts("chat")


async def test_scripts_are_sent_again_to_a_server_that_has_lost_them(server: RedisServer) -> None:
    async with running(server.url) as (engine, _):
        with server.client() as client:
            client.script_flush()
        answers = await asyncio.gather(
            *(engine.publish(publication("chat", str(n)), HISTORY) for n in range(10))
        )
        assert [answer.offset for answer in answers] == list(range(1, 11))
        assert len((await engine.history("chat")).publications) == 10


async def test_a_message_that_is_no_publication_is_ignored_and_logged_once(
    redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_url, namespace) as (engine, collector):
        await engine.subscribe("chat")
        name = f"{namespace}:{{chat}}:0"
        with Redis.from_url(redis_url) as client, caplog.at_level(logging.WARNING):
            for payload in (b"", b"hello", b"1 2 3 4", b"a b c d", b"0  1.0 \xc1", b"\xff \xff 1 \x90"):
                assert client.publish(name, payload) == 1
            await engine.publish(publication("chat", "good"))
            await collector.heard("chat", ["good"])
        assert len(caplog.records) == 1
        assert "'chat'" in caplog.text


async def test_an_entry_that_is_no_publication_is_left_out_of_the_history(
    redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_url, namespace) as (engine, _):
        await engine.publish(publication("chat", "1"), HISTORY)
        with Redis.from_url(redis_url) as client:
            key = f"{namespace}:{{chat}}"
            client.xadd(f"{key}:log", {"t": "99999999999", "p": "hello"}, id="2-0")
            client.hset(f"{key}:meta", "offset", "2")
        await engine.publish(publication("chat", "3"), HISTORY)
        with caplog.at_level(logging.WARNING):
            assert [each.offset for each in (await engine.history("chat")).publications] == [1, 3]
        assert len(caplog.records) == 1


async def test_tls(redis_url: str, namespace: str, tmp_path: Path) -> None:
    authority, file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    # The server in the wheel has no TLS.
    proxy = Proxy(parse_url(redis_url).options["port"])
    async with serving(proxy.handle, tls) as port:
        trusting = f"rediss://localhost:{port}/0?ssl_ca_certs={file}"
        async with running(trusting, namespace) as (engine, collector):
            await engine.subscribe("chat", HISTORY)
            await engine.publish(publication("chat", "hello"), HISTORY)
            await collector.heard("chat", ["hello"])
        for url in (
            f"rediss://localhost:{port}/0",
            f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={file}",
            f"redis://localhost:{port}/0",
        ):
            with pytest.raises(EngineUnavailable, match=str(port)):
                await RedisEngine(url).start(Collector())


async def test_a_socket_in_the_file_system(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_server("unixsocket", str(path)):
        async with running(f"redis+unix://{path}?db=1") as (engine, collector):
            await engine.subscribe("chat", HISTORY)
            await engine.publish(publication("chat", "hello"), HISTORY)
            await collector.heard("chat", ["hello"])
