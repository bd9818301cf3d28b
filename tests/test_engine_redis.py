"""What is Redis's own: servers that go away, fall silent or refuse. What all engines share is tested in
``test_engine_contract.py``."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
import trustme
from redis import Redis
from redis.crc import key_slot

from hubbub.channels import Channel
from hubbub.core.frames import Batch
from hubbub.core.publication import START, Position
from hubbub.engines import backoff, engine_for
from hubbub.engines.base import PresenceChange
from hubbub.engines.contract import HISTORY, Collector, publication
from hubbub.engines.redis import RedisEngine, link, servers, session, supervisor
from hubbub.engines.redis.url import parse_url
from hubbub.exceptions import EngineUnavailable, InvalidURL
from hubbub.node import Node
from hubbub.types import History
from tests.redis_server import RedisServer, free_port, redis_cluster, redis_sentinel, redis_server

#: Seconds after which a test gives up waiting.
DEADLINE = 30.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of the test's own."""
    with redis_server() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed sooner."""
    for module in (link, session, supervisor):
        monkeypatch.setattr(module, "ANSWER_TIMEOUT", 1.0)
    for module in (link, servers, session):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT", 1.0)
    monkeypatch.setattr(supervisor, "PING_INTERVAL", 0.25)
    monkeypatch.setattr(backoff, "RETRY_MAX", 0.5)


@asynccontextmanager
async def running(url: str, namespace: str = "hubbub") -> AsyncIterator[tuple[RedisEngine, Collector]]:
    engine, collector = engine_for(url, namespace), Collector()
    assert isinstance(engine, RedisEngine)
    await engine.start(collector)
    try:
        yield engine, collector
    finally:
        await engine.stop()


async def until(condition: Callable[[], object]) -> None:
    """Ask, in this thread, until it is so."""
    await Collector().until(lambda: bool(condition()))


async def refusal(engine: RedisEngine, channel: str = "chat", history: History | None = None) -> str:
    """Why a publication is not accepted."""
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(EngineUnavailable) as info:
            await engine.publish(publication(channel, "refused"), history)
    return str(info.value)


def is_caught_up(client: Redis) -> bool:
    """Whether the only replica has everything that its primary has."""
    state: Any = client.info("replication")
    return bool(state["slave0"]["offset"] == state["master_repl_offset"])


async def accepted(engine: RedisEngine, text: str, history: History | None = None) -> Position:
    """Publish, as often as it takes."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(EngineUnavailable):
                return await engine.publish(publication("chat", text), history)


# Servers that go away


async def test_a_server_that_comes_back_with_its_data_goes_on_where_it_was(server: RedisServer) -> None:
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


async def test_a_server_that_comes_back_without_its_data_begins_a_new_epoch(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        before = await engine.subscribe("chat", HISTORY)
        await engine.publish(publication("chat", "before"), HISTORY)
        await collector.heard("chat", ["before"])
        server.kill()
        server.forget()
        server.start()
        await collector.until(lambda: collector.reconnects == 1)
        assert await engine.history("chat") == ([], START)
        after = await engine.publish(publication("chat", "after"), HISTORY)
        assert after.offset == 1
        assert after.epoch != before.epoch
        await collector.heard("chat", ["before", "after"])


class Member:
    id = "member"

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.breaks: list[Position] = []

    def write(self, batch: Batch) -> int:
        self.frames += [frame.data for frame in batch.frames]
        return len(batch)

    def write_rest(self, batch: Batch, taken: int) -> None:
        raise AssertionError("everything was taken")

    def broken(self, channel: str, position: Position) -> None:
        self.breaks.append(position)


@pytest.mark.parametrize("keeps_data", [True, False])
async def test_members_are_told_when_the_server_has_lost_what_they_saw(
    server: RedisServer, keeps_data: bool
) -> None:
    node, member = Node(RedisEngine(server.url), lambda name: Channel(name, HISTORY)), Member()
    await node.start()
    async with running(server.url) as (other, collector):
        await node.join("chat", member)
        before = await node.publish(publication("chat", "before"))
        server.kill()
        if not keeps_data:
            server.forget()
        server.start()
        # Published by somebody else, maybe before this node is back.
        await collector.until(lambda: collector.reconnects == 1)
        top = await accepted(other, "after", HISTORY)
        await collector.until(lambda: node.position("chat") == top)
        if keeps_data:
            await collector.until(lambda: len(member.frames) == 2)
            assert member.breaks == []
        else:
            assert [position.epoch != before.epoch for position in member.breaks] == [True]
    await node.stop(1001, "", 0)


async def test_what_is_published_while_the_server_is_away_is_refused_in_bounded_time(
    server: RedisServer,
) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat")
        server.kill()
        message = await refusal(engine)
        assert f"127.0.0.1:{server.port}" in message
        # Now that it is known, too; and all of them, however many.
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


async def test_a_server_that_is_away_for_a_moment_is_waited_for(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        server.kill()
        await collector.until(lambda: engine._supervisor.session is None)
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
async def test_a_server_that_falls_silent_is_noticed(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat")
        with server.frozen():
            assert "Redis" in await refusal(engine)
            # Also while nobody asks it for anything, and if it takes connections.
            await collector.until(lambda: engine._supervisor.session is None)
            assert "Redis" in await refusal(engine)
        await collector.until(lambda: collector.reconnects == 1)
        await accepted(engine, "back")
        await collector.until(lambda: "back" in collector.texts("chat"))


async def test_connections_that_are_cut_are_opened_again(server: RedisServer) -> None:
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


class Telltale(Collector):
    """A node that notes when the engine goes and comes, and makes a fuss about it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def on_disconnect(self, reason: str) -> None:
        super().on_disconnect(reason)
        self.told.append(reason)
        raise RuntimeError("a node that fails")

    def on_reconnect(self) -> None:
        super().on_reconnect()
        self.told.append("back")
        raise RuntimeError("a node that fails")


async def test_the_node_is_told_once_that_the_server_is_away_and_once_that_it_is_back(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    engine, telltale = RedisEngine(server.url), Telltale()
    await engine.start(telltale)
    for number in (1, 2):
        server.kill()
        await telltale.until(lambda number=number: telltale.disconnects == number)  # type: ignore[misc]
        assert engine._supervisor.session is None
        with caplog.at_level(logging.INFO):
            caplog.clear()
            # It has been tried again, in vain.
            await telltale.until(lambda: caplog.text.count("Still without Redis") >= 2)
        server.start()
        await telltale.until(lambda number=number: telltale.reconnects == number)  # type: ignore[misc]
        await engine.publish(publication("chat", "taken"))
    await engine.stop()
    assert telltale.told[1::2] == ["back", "back"]
    assert [f"127.0.0.1:{server.port}" in reason for reason in telltale.told[::2]] == [True, True]


async def test_the_node_is_not_told_that_it_stops_while_the_server_is_away(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        server.kill()
        await collector.until(lambda: collector.disconnects == 1)
        await engine.stop()
        server.start()
        await engine.start(collector)
        await engine.publish(publication("chat", "taken"))
    assert (collector.disconnects, collector.reconnects) == (1, 0)


async def test_channels_of_our_own_are_channels_like_any_other(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, collector):
        for name in ("\x01control", "\x01presence:room:1"):
            await engine.subscribe(name, HISTORY)
            assert (await engine.publish(publication(name, name), HISTORY, "key")).offset == 1
            await collector.heard(name, [name])
            assert [each.channel for each in (await engine.history(name)).publications] == [name]
        assert await engine.history("control") == ([], START)


# What is on its way


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]],
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """A port on which connections are handled, until the last of them has ended."""
    tasks: set[asyncio.Task[object]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(OSError):
            await handle(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls) as listener:
        yield listener.sockets[0].getsockname()[1]
    if tasks:
        await asyncio.wait(tasks, timeout=DEADLINE)


class Proxy:
    """Between an engine and its server. Counts what the engine sends, and can swallow what listeners get."""

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.writes = 0
        self.is_silencing = False

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        is_listener = False

        async def forth() -> None:
            nonlocal is_listener
            while data := await reader.read(2**20):
                is_listener = is_listener or b"SUBSCRIBE" in data
                self.writes += 1
                server_writer.write(data)
            server_writer.close()

        async def back() -> None:
            while data := await server_reader.read(2**20):
                if not (is_listener and self.is_silencing):
                    writer.write(data)

        await asyncio.gather(forth(), back())
        with suppress(OSError):
            await server_writer.wait_closed()


async def test_what_is_published_within_one_turn_goes_out_in_one_write(
    redis_url: str, namespace: str
) -> None:
    proxy = Proxy(parse_url(redis_url).options["port"])
    async with serving(proxy.handle) as port, running(f"redis://127.0.0.1:{port}", namespace) as (engine, _):
        proxy.writes = 0
        answers = await asyncio.gather(
            *(engine.publish(publication("chat", str(n)), HISTORY) for n in range(100))
        )
        assert [answer.offset for answer in answers] == list(range(1, 101))
        # TCP may split it; a round trip for each would be a hundred.
        assert proxy.writes < 10


@pytest.mark.usefixtures("impatient")
async def test_a_node_that_does_not_hear_does_not_speak(redis_url: str, namespace: str) -> None:
    proxy = Proxy(parse_url(redis_url).options["port"])
    async with (
        serving(proxy.handle) as port,
        running(f"redis://127.0.0.1:{port}", namespace) as (engine, seen),
    ):
        await engine.subscribe("chat")
        proxy.is_silencing = True
        await seen.until(lambda: engine._supervisor.session is None)
        # The connection for commands is fine, and so would be another one for listening, but for the silence.
        assert "Redis" in await refusal(engine)
        proxy.is_silencing = False
        await seen.until(lambda: seen.reconnects == 1)
        await accepted(engine, "back")
        await seen.heard("chat", ["back"])


async def test_every_node_hears_the_same_order(redis_url: str, namespace: str) -> None:
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


async def test_a_server_that_has_forgotten_the_scripts_is_told_them(server: RedisServer) -> None:
    async with running(server.url) as (engine, _):
        with server.client() as client:
            client.script_flush()
        answers = await asyncio.gather(
            *(engine.publish(publication("chat", str(n)), HISTORY) for n in range(10))
        )
        assert [answer.offset for answer in answers] == list(range(1, 11))
        assert len((await engine.history("chat")).publications) == 10


async def test_what_is_no_publication_is_ignored_and_logged_once(
    redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_url, namespace) as (engine, collector):
        await engine.subscribe("chat")
        name = engine._keys.topic("chat")
        with Redis.from_url(redis_url) as client, caplog.at_level(logging.WARNING):
            for payload in (b"", b"hello", b"1 2 3 4", b"a b c d", b"0  1.0 \xc1", b"\xff \xff 1 \x90"):
                assert client.publish(name, payload) == 1
            await engine.publish(publication("chat", "good"))
            await collector.heard("chat", ["good"])
        assert len(caplog.records) == 1
        assert "'chat'" in caplog.text


async def test_what_is_no_publication_is_left_out_of_the_history(
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


# What is kept


async def test_everything_expires(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        await engine.publish(publication("chat", "1"), History(size=10, ttl=60), "key")
        await engine.publish(publication("plain", "1"))
        with Redis.from_url(redis_url) as client:
            ttls: dict[str, Any] = {
                key.decode().removeprefix(f"{namespace}:"): client.pttl(key)
                for key in client.scan_iter(f"{namespace}:*")
            }
    assert ttls.keys() == {"{chat}:meta", "{chat}:log", "{chat}:key:key"}
    assert 50_000 < ttls["{chat}:log"] <= 60_000
    assert ttls["{chat}:meta"] > ttls["{chat}:log"] + 3_000_000
    assert 250_000 < ttls["{chat}:key:key"] <= 300_000


async def test_what_is_too_old_is_dropped_from_the_server(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        brief = History(size=100, ttl=0.2)
        await asyncio.gather(*(engine.publish(publication("chat", str(n)), brief) for n in range(10)))
        await asyncio.sleep(0.15)
        await engine.publish(publication("chat", "keeps the log from expiring"), brief)
        await asyncio.sleep(0.1)
        with Redis.from_url(redis_url) as client:
            log = f"{namespace}:{{chat}}:log"
            for left in (10, 9, 8):
                await engine.publish(publication("chat", "new"), brief)
                assert client.xlen(log) == left
        offsets = [each.offset for each in (await engine.history("chat")).publications]
        assert offsets == [11, 12, 13, 14]


async def test_a_stream_that_is_looked_at_lives_on(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        await engine.subscribe("chat", HISTORY)
        meta = f"{namespace}:{{chat}}:meta"
        with Redis.from_url(redis_url) as client:
            client.pexpire(meta, 10_000)
            await engine.history("chat", limit=0)
            ttl: Any = client.pttl(meta)
    assert ttl > 3_000_000


@pytest.mark.parametrize("lost", ["meta", "log"])
async def test_a_key_that_was_evicted_breaks_nothing(redis_url: str, namespace: str, lost: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        before = [await engine.publish(publication("chat", str(n)), HISTORY) for n in range(3)][-1]
        with Redis.from_url(redis_url) as client:
            assert client.delete(f"{namespace}:{{chat}}:{lost}") == 1
        after = await engine.publish(publication("chat", "after"), HISTORY)
        if lost == "meta":
            assert after.offset == 1
            assert after.epoch != before.epoch
        else:
            assert after == (before.offset + 1, before.epoch)
        assert [each.offset for each in (await engine.history("chat")).publications] == [after.offset]


@pytest.mark.parametrize("offset", [-5, 2**40, 2**70])
async def test_positions_that_never_were_are_harmless(redis_url: str, namespace: str, offset: int) -> None:
    async with running(redis_url, namespace) as (engine, _):
        top = await engine.publish(publication("chat", "1"), HISTORY)
        for reverse in (False, True):
            page = await engine.history("chat", Position(offset, top.epoch), reverse=reverse)
            assert page.position == top
            assert len(page.publications) == ((offset > 0) == reverse)


async def test_limits_beyond_what_redis_counts_are_taken(redis_url: str, namespace: str) -> None:
    async with running(redis_url, namespace) as (engine, _):
        await engine.publish(publication("chat", "1"), History(size=10**30, ttl=float("inf")))
        await engine.publish(publication("chat", "2"), History(size=10, ttl=1e-9))


async def test_namespaces_and_databases_are_kept_apart(redis_url: str) -> None:
    host = "{host}:{port}".format(**parse_url(redis_url).options)
    token = token_hex(4)
    urls = [(f"redis://{host}/0", token), (f"redis://{host}/1", token), (f"redis://{host}/0", token + ":{a}")]
    async with AsyncExitStack() as stack:
        all_of_them = [await stack.enter_async_context(running(*each)) for each in urls]
        for engine, _ in all_of_them:
            await engine.subscribe("chat", HISTORY)
        for number, (engine, _) in enumerate(all_of_them):
            assert (await engine.publish(publication("chat", str(number)), HISTORY)).offset == 1
        for number, (_, collector) in enumerate(all_of_them):
            await collector.heard("chat", [str(number)])


# Servers that refuse


async def test_nobody_there() -> None:
    port = free_port()
    engine = RedisEngine(f"redis://user:s3cret@127.0.0.1:{port}/0")
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}") as info:
            await engine.start(Collector())
    assert "s3cret" not in str(info.value)
    await engine.stop()


@pytest.mark.usefixtures("impatient")
async def test_somebody_who_says_nothing() -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(connected) as port:
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}.* no answer"):
            await RedisEngine(f"redis://127.0.0.1:{port}").start(Collector())


async def test_somebody_who_is_no_redis() -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with serving(connected) as port:
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}"):
            await RedisEngine(f"redis://127.0.0.1:{port}").start(Collector())


async def test_a_wrong_password() -> None:
    with redis_server("requirepass", "s3cret") as server:
        host = f"127.0.0.1:{server.port}"
        async with running(f"redis://:s3cret@{host}") as (engine, _):
            await engine.publish(publication("chat", "hello"))
        async with running(f"redis://default:s3cret@{host}/1") as (engine, _):
            await engine.publish(publication("chat", "hello"))
        for url, said in (
            (f"redis://:wr0ng@{host}", "WRONGPASS|invalid"),
            (f"redis://{host}", "uthentication"),
        ):
            with pytest.raises(EngineUnavailable, match=said) as info:
                await RedisEngine(url).start(Collector())
            assert "wr0ng" not in str(info.value)


async def test_a_database_that_does_not_exist(server: RedisServer) -> None:
    with pytest.raises(EngineUnavailable, match=r"out of range|Invalid Database"):
        await RedisEngine(f"{server.url}/999").start(Collector())


async def test_a_server_without_memory(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("plain")
        with server.client() as client:
            client.config_set("maxmemory", "1mb")
            assert "maxmemory" in await refusal(engine, history=HISTORY)
            assert client.keys() == []
            # What is not kept needs none.
            await engine.publish(publication("plain", "hello"))
            await collector.heard("plain", ["hello"])
            client.config_set("maxmemory", "0")
        assert (await engine.publish(publication("chat", "1"), HISTORY)).offset == 1


async def test_a_replica(server: RedisServer) -> None:
    with redis_server("replicaof", f"127.0.0.1 {server.port}") as replica:
        engine = RedisEngine(replica.url)
        with pytest.raises(EngineUnavailable, match="primary"):
            await engine.start(Collector())


async def test_a_primary_that_becomes_a_replica(server: RedisServer) -> None:
    async with running(server.url) as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        with server.client() as client:
            client.replicaof("127.0.0.1", free_port())
            message = await refusal(engine, history=HISTORY)
            assert "read only" in message
            await collector.until(lambda: engine._supervisor.session is None)
            client.execute_command("REPLICAOF", "NO", "ONE")
        await collector.until(lambda: collector.reconnects >= 1)
        await accepted(engine, "back", HISTORY)


@pytest.mark.usefixtures("impatient")
async def test_a_primary_that_becomes_a_replica_while_nothing_is_kept(server: RedisServer) -> None:
    """A replica would take it, and tell nobody but those who listen to it."""
    async with running(server.url) as (engine, collector):
        with server.client() as client:
            client.replicaof("127.0.0.1", free_port())
            await collector.until(lambda: engine._supervisor.session is None)
            assert "primary" in await refusal(engine)


async def test_a_server_that_does_not_let_us(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "ann", "on", ">pw", "~hubbub:*", "&hubbub:*", "+@all", "-@dangerous"
        )
        client.execute_command("ACL", "SETUSER", "bob", "on", ">pw", "~other:*", "&*", "+@all")
    async with running(f"redis://ann:pw@127.0.0.1:{server.port}") as (engine, collector):
        await engine.subscribe("chat", HISTORY)
        await engine.publish(publication("chat", "hello"), HISTORY)
        await collector.heard("chat", ["hello"])
    async with running(f"redis://bob:pw@127.0.0.1:{server.port}") as (engine, _):
        assert "permission" in await refusal(engine, history=HISTORY)


# Sentinels


async def test_when_the_primary_dies_the_one_that_the_sentinels_choose_takes_over(
    server: RedisServer,
) -> None:
    with redis_server("replicaof", f"127.0.0.1 {server.port}") as replica:
        with replica.client() as client:
            await until(lambda: client.info("replication")["master_link_status"] == "up")
        with redis_sentinel(server.port) as sentinel:
            # The first one is not there.
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


async def test_sentinels_that_know_no_such_service(server: RedisServer) -> None:
    with redis_sentinel(server.port) as sentinel:
        engine = RedisEngine(f"redis+sentinel://127.0.0.1:{sentinel.port}/other")
        with pytest.raises(EngineUnavailable, match=r"the sentinels at 127\.0\.0\.1:.*other"):
            await engine.start(Collector())


# Clusters


async def test_channels_are_spread_over_a_cluster(redis_cluster_url: str, namespace: str) -> None:
    async with running(redis_cluster_url, namespace) as (engine, collector):
        channels = [f"room:{number}" for number in range(30)]
        await asyncio.gather(*(engine.subscribe(channel, HISTORY) for channel in channels))
        await asyncio.gather(
            *(engine.publish(publication(channel, channel), HISTORY, "key") for channel in channels)
        )
        for channel in channels:
            await collector.heard(channel, [channel])
        session = engine._supervisor.session
        assert session is not None
        assert len(session.links) == 6
        assert {session.node(engine._keys.topic(channel)) for channel in channels} == {0, 1, 2}


async def test_a_node_of_a_cluster_that_goes_and_comes_back(namespace: str) -> None:
    with redis_cluster() as servers:
        url = f"redis+cluster://127.0.0.1:{servers[0].port},127.0.0.1:{servers[1].port}"
        async with running(url, namespace) as (engine, collector):
            channels = [f"room:{number}" for number in range(30)]
            for channel in channels:
                await engine.subscribe(channel, HISTORY)
                await engine.publish(publication(channel, "1"), HISTORY)
            servers[0].kill()
            await collector.until(lambda: engine._supervisor.session is None)
            # Its channels are not heard, so nothing is said.
            assert "cluster" in await refusal(engine)
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
            session = engine._supervisor.session
            assert session is not None
            assert {link.where for link in session.links} == {
                f"127.0.0.1:{each.port}" for each in servers[1:]
            }
            for channel in channels:
                async with asyncio.timeout(DEADLINE):
                    while True:
                        with suppress(EngineUnavailable):
                            position = await engine.publish(publication(channel, "2"), HISTORY, "2")
                            break
                assert position == (2, before[channel].epoch)
                await collector.heard(channel, ["1", "2"])
                assert await engine.presence(channel) == {"a": b"data"}
            # What the replica had not got yet nobody knows: everybody is to be entered again.
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
                session = engine._supervisor.session
                assert session is not None
                slot = key_slot(engine._keys.topic("chat"))
                target = 1 - session.node(engine._keys.topic("chat"))
                # The one that gets it is told first. There are no keys to be taken along.
                for client in ((first, second), (second, first))[1 - target][::-1]:
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
            await collector.until(lambda: collector.reconnects >= 1)
            await accepted(engine, "after")
            await collector.heard("chat", ["before", "after"])


async def test_a_server_that_is_no_cluster(server: RedisServer) -> None:
    engine = RedisEngine(f"redis+cluster://127.0.0.1:{server.port}")
    with pytest.raises(EngineUnavailable, match="cluster support disabled"):
        await engine.start(Collector())


# URLs


@pytest.mark.parametrize(
    ("url", "where", "db"),
    [
        ("redis://", "localhost:6379", 0),
        ("redis://localhost", "localhost:6379", 0),
        ("REDIS://LOCALHOST/", "LOCALHOST:6379", 0),
        ("redis://127.0.0.1:7000/3", "127.0.0.1:7000", 3),
        ("redis://[::1]:7000/3", "::1:7000", 3),
        ("rediss://h?ssl_check_hostname=false", "h:6379", 0),
        ("redis+unix:///run/redis.sock?db=2", "/run/redis.sock", 2),
        ("redis+cluster://a,b:1", "the cluster at a:6379, b:1", 0),
        ("redis+sentinel://a,b:1/mymaster/4", "the sentinels at a:26379, b:1", 4),
    ],
)
def test_urls(url: str, where: str, db: int) -> None:
    target = parse_url(url)
    assert (target.where, target.options["db"]) == (where, db)
    engine_for(url)


def test_credentials_are_unquoted() -> None:
    options = parse_url("redis://a%40b:p%2Fw@h").options
    assert (options["username"], options["password"]) == ("a@b", "p/w")


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3cret/0",
        "redis://h:s3cret@h:port/0",
        "redis://:s3cret@h/x",
        "redis://:s3cret@h/-1",
        "redis://:s3cret@h:1:2",
        "redis://:s3cret@[h/0",
        "redis://:s3cret@h?s3cret",
        "redis://:s3cret@h?password=s3cret",
        "redis://:s3cret#x@h",
        "redis://a,b:s3cret",
        "redis+unix://s3cret@h/x",
        "redis+unix://",
        "redis+cluster://:s3cret@a,b/1",
        "redis+cluster://:s3cret@",
        "redis+sentinel://:s3cret@a,b",
        "redis+sentinel://:s3cret@a,b/service/x",
    ],
)
def test_a_url_that_cannot_be_understood_is_not_repeated(url: str) -> None:
    with pytest.raises(InvalidURL) as info:
        engine_for(url)
    shown: BaseException | None = info.value
    while shown is not None:
        assert "s3cret" not in str(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


async def test_tls(redis_url: str, namespace: str, tmp_path: Path) -> None:
    authority, file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    # The server in the wheel knows no TLS.
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
