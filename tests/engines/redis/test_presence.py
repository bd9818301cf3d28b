"""Presence on Redis: in several keys, changed in several steps, any of which may be the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import Random
from secrets import token_hex
from typing import Any, cast

import pytest
from redis import Redis, RedisCluster

from hubbub.engines import engine_for
from hubbub.engines.base import PresenceChange
from hubbub.engines.redis import RedisEngine, presence, supervisor
from hubbub.engines.redis.address import parse_url
from hubbub.exceptions import EngineUnavailable
from hubbub.testing.engine_contract import DEADLINE, Collector
from tests.engines.redis.server import redis_server

#: Enough channels for each node of a cluster to have some of them.
CHANNELS = [f"room:{number}" for number in range(30)]


class Place:
    """A server or a cluster, and a namespace in it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.namespace = f"test-{token_hex(4)}"

    @asynccontextmanager
    async def nodes(self, count: int = 1) -> AsyncIterator[list[RedisEngine]]:
        async with AsyncExitStack() as stack:
            engines = []
            for _ in range(count):
                engine = engine_for(self.url, self.namespace)
                assert isinstance(engine, RedisEngine)
                await engine.start(Collector())
                stack.push_async_callback(engine.stop)
                engines.append(engine)
            yield engines

    def client(self) -> Redis:
        if not self.url.startswith("redis+cluster"):
            return Redis.from_url(self.url)
        (host, port), *_ = parse_url(self.url).nodes
        # Not a subclass of Redis, but it has the same methods.
        return cast(Redis, RedisCluster(host=host, port=port))

    def ttls(self) -> dict[str, int]:
        """Return the milliseconds until each key expires."""
        with self.client() as client:
            return {
                key.decode().removeprefix(f"{self.namespace}:"): cast(int, client.pttl(key))
                for key in client.scan_iter(f"{self.namespace}:*")
            }


@pytest.fixture(params=["redis_url", "redis_cluster_url"])
def place(request: pytest.FixtureRequest) -> Place:
    return Place(request.getfixturevalue(request.param))


@pytest.fixture
def single(redis_url: str) -> Place:
    return Place(redis_url)


def enters(channel: str, connection: str = "a") -> PresenceChange:
    return PresenceChange(channel, connection, b"\0data of " + connection.encode())


def leaves(channel: str, connection: str = "a") -> PresenceChange:
    return PresenceChange(channel, connection, None)


async def present(engine: RedisEngine, channel: str) -> list[str]:
    return sorted(await engine.presence(channel))


class Crash(Exception):
    """The process crashes between two steps."""


def crash_at(engine: RedisEngine, monkeypatch: pytest.MonkeyPatch, step: str, after: int = 0) -> None:
    """Have the engine crash instead of ``step`` of its presence, after ``after`` calls of it."""
    count = 0
    method: Callable[..., Any] = getattr(engine._presence, step)

    async def crashing(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise Crash
        return await method(*arguments)

    monkeypatch.setattr(engine._presence, step, crashing)


async def test_entries_are_spread_over_all_nodes_of_a_cluster(place: Place) -> None:
    async with place.nodes(2) as (engine, other):
        assert await engine.update_presence("one", 60, [enters(each) for each in CHANNELS], begin=True)
        assert await other.update_presence("two", 60, [enters(each, "b") for each in CHANNELS], begin=True)
        for channel in CHANNELS:
            assert await other.presence(channel) == {"a": b"\0data of a", "b": b"\0data of b"}
        assert await engine.update_presence("one", -1)
        assert sorted(await other.expire_presence(0)) == sorted(leaves(each) for each in CHANNELS)
        for channel in CHANNELS:
            assert await present(engine, channel) == ["b"]


async def test_all_keys_expire_unless_they_are_refreshed(place: Place) -> None:
    async with place.nodes() as (engine,):
        assert await engine.update_presence("one", 60, [enters("chat")], begin=True)
    ttls = place.ttls()
    assert ttls.keys() == {"{%leases}", "{%leases}:one", "{chat}:presence"}
    for ttl in ttls.values():
        assert 24 * 3600_000 - 10_000 < ttl <= 24 * 3600_000 + 60_000


async def test_no_keys_are_left_when_all_connections_have_left(place: Place) -> None:
    async with place.nodes() as (engine,):
        assert await engine.update_presence("one", 60, [enters(each) for each in CHANNELS], begin=True)
        assert await engine.update_presence("one", 60, [leaves(each) for each in CHANNELS])
        assert place.ttls().keys() == {"{%leases}"}
        assert await engine.update_presence("one", -1)
        assert await engine.expire_presence(0) == []
        assert place.ttls() == {}


async def test_a_channel_is_noted_as_long_as_the_lease_has_an_entry_in_it(single: Place) -> None:
    async with single.nodes() as (engine,):
        assert await engine.update_presence("one", 60, [enters("chat"), enters("chat", "b")], begin=True)
        assert await engine.update_presence("one", 60, [leaves("chat"), enters("chat", "b")])
        assert "{%leases}:one" in single.ttls()
        assert await engine.update_presence("one", 60, [leaves("chat", "b")])
        assert "{%leases}:one" not in single.ttls()


async def test_the_key_of_a_channel_without_changes_is_refreshed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.nodes() as (engine,):
        assert await engine.update_presence("one", 60, [enters("chat")], begin=True)
        with place.client() as client:
            key = f"{place.namespace}:{{chat}}:presence"
            client.pexpire(key, 60_000)
            assert await engine.update_presence("one", 60)
            assert cast(int, client.pttl(key)) <= 60_000
            monkeypatch.setattr(presence, "REFRESH", 0)
            assert await engine.update_presence("one", 60)
            assert cast(int, client.pttl(key)) > 60_000
            # With the next update, the note of a channel without entries is removed.
            client.delete(key)
        assert await engine.update_presence("one", 60)
        assert place.ttls().keys() == {"{%leases}"}


async def test_updates_at_the_same_time_are_made_in_the_order_of_the_calls(place: Place) -> None:
    async with place.nodes() as (engine,):
        assert await engine.update_presence("one", 60, begin=True)
        many = [enters(channel, str(number)) for number in range(30) for channel in CHANNELS]
        answers = await asyncio.gather(
            engine.update_presence("one", 60, many),
            *(
                engine.update_presence("one", 60, [change])
                for _ in range(10)
                for change in (enters("room:1", "x"), leaves("room:1", "x"))
            ),
            engine.update_presence("one", 60, [enters("room:1", "y"), leaves("room:2", "0")]),
        )
        assert all(answers)
        assert await present(engine, "room:1") == sorted(["y", *map(str, range(30))])
        assert "0" not in await present(engine, "room:2")


async def test_a_large_channel_is_cleared_in_parts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.nodes(2) as (engine, other):
        mine = [enters("chat", f"mine {number}") for number in range(1500)]
        yours = [enters("chat", f"yours {number}") for number in range(1500)]
        assert await engine.update_presence("one", 60, mine, begin=True)
        assert await other.update_presence("two", 60, yours, begin=True)
        assert await engine.update_presence("one", -1)
        monkeypatch.setattr(presence, "SCRIPT_BATCH", 100)
        removed = await other.expire_presence(0)
        assert sorted(removed) == sorted(leaves(*each[:2]) for each in mine)
        assert await present(engine, "chat") == sorted(each.connection for each in yours)


async def test_several_nodes_that_expire_at_once_return_each_removal_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No node leaves the removal to another one.
    monkeypatch.setattr(presence, "TURN", -1)
    async with place.nodes(4) as engines:
        entered = [enters(channel, str(number)) for number in range(20) for channel in CHANNELS]
        assert await engines[0].update_presence("one", 60, entered, begin=True)
        assert await engines[0].update_presence("one", -1)
        answers: Sequence[Sequence[PresenceChange]] = await asyncio.gather(
            *(engine.expire_presence(0) for engine in engines)
        )
        removed = [change for answer in answers for change in answer]
        assert sorted(removed) == sorted(leaves(*each[:2]) for each in entered)
        assert place.ttls() == {}


# Processes that crash


async def test_a_node_that_crashes_before_it_has_made_an_entry(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.nodes(2) as (engine, other):
        crash_at(engine, monkeypatch, "_enter")
        with pytest.raises(Crash):
            await engine.update_presence("one", -1, [enters("chat")], begin=True)
        assert await other.expire_presence(0) == []
        assert place.ttls() == {}


@pytest.mark.parametrize(("step", "after"), [("_remove", 0), ("_clear", 0), ("_clear", 9), ("_forget", 0)])
async def test_another_node_continues_the_removal_of_one_that_crashes(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str, after: int
) -> None:
    async with place.nodes(3) as (engine, other, third):
        entered = [enters(each) for each in CHANNELS]
        assert await engine.update_presence("one", -1, entered, begin=True)
        crash_at(other, monkeypatch, step, after)
        with pytest.raises(Crash):
            await other.expire_presence(0)
        # A claimed lease cannot be renewed, and for now no other node may claim it.
        assert not await engine.update_presence("one", 60)
        assert not await engine.update_presence("one", 60, begin=True)
        assert await third.expire_presence(0) == []
        with place.client() as client:
            leases = f"{place.namespace}:{{%leases}}"
            until = cast(float, client.zscore(leases, "one"))
            assert until < 0
            # The time of the first node is over.
            client.zadd(leases, {"one": until + 1000 * presence.TURN})
        removed = await third.expire_presence(0)
        left = {"_remove": len(CHANNELS), "_clear": len(CHANNELS) - after, "_forget": 0}[step]
        assert len(removed) == left
        assert set(removed) <= {leaves(each) for each in CHANNELS}
        for channel in CHANNELS:
            assert await third.presence(channel) == {}
        assert place.ttls() == {}


async def test_entries_that_were_removed_before_an_error_are_returned(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.nodes() as (engine,):
        clear = engine._presence._clear

        async def clearing(channel: str, lease: str, removed: list[PresenceChange]) -> None:
            if channel == "room:7":
                raise EngineUnavailable("lost")
            await clear(channel, lease, removed)

        assert await engine.update_presence("one", -1, [enters(each) for each in CHANNELS], begin=True)
        with monkeypatch.context() as context:
            context.setattr(engine._presence, "_clear", clearing)
            context.setattr(presence, "TURN", -1)
            removed = await engine.expire_presence(0)
            assert sorted(removed) == sorted(leaves(each) for each in CHANNELS if each != "room:7")
            with pytest.raises(EngineUnavailable, match="lost"):
                await engine.expire_presence(0)
        assert await engine.expire_presence(0) == [leaves("room:7")]


class Worker:
    """A node whose connections enter and leave. It crashes between steps, and a new one enters them again."""

    def __init__(
        self, name: str, engine: RedisEngine, random: Random, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.name = name
        self.engine = engine
        self.random = random
        #: (channel, connection) -> data.
        self.entries: dict[tuple[str, str], bytes] = {}
        self.may_crash = True
        self.lease = ""
        self._leases = 0
        for step in ("_renew", "_enter", "_forget", "_clear", "_remove"):
            monkeypatch.setattr(engine._presence, step, self._crashing(getattr(engine._presence, step)))

    def _crashing(self, step: Callable[..., Any]) -> Callable[..., Any]:
        async def crashing(*arguments: Any) -> Any:
            if self.may_crash and self.random.random() < 0.03:
                raise Crash
            answer = await step(*arguments)
            if self.may_crash and self.random.random() < 0.03:
                raise Crash
            return answer

        return crashing

    async def begin(self) -> None:
        is_there = False
        entered = [PresenceChange(*key, data) for key, data in self.entries.items()]
        while not is_there:
            self._leases += 1
            self.lease = f"{self.name}.{self._leases}"
            with suppress(Crash):
                is_there = await self.engine.update_presence(self.lease, 60, entered, begin=True)

    async def live(self, turns: int) -> None:
        await self.begin()
        for turn in range(turns):
            changes = []
            for _ in range(self.random.randrange(10)):
                key = (f"room:{self.random.randrange(6)}", f"{self.name}:{self.random.randrange(30)}")
                data = None if key in self.entries else str(turn).encode()
                changes.append(PresenceChange(*key, data))
                if data is None:
                    del self.entries[key]
                else:
                    self.entries[key] = data
            # Sometimes the lease lapses, and another node may remove it.
            ttl = self.random.choice((60, 60, -1))
            try:
                is_there = await self.engine.update_presence(self.lease, ttl, changes)
            except Crash:
                is_there = False
            if not is_there:
                await self.begin()
            with suppress(Crash):
                await self.engine.expire_presence(0)


@pytest.mark.parametrize("seed", range(3))
async def test_wherever_nodes_crash_exactly_the_entries_of_the_others_remain(
    place: Place, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(presence, "SCRIPT_BATCH", 3)
    monkeypatch.setattr(presence, "BATCH", 5)
    monkeypatch.setattr(presence, "TURN", -1)
    async with place.nodes(3) as engines:
        random = Random(seed)
        workers = [Worker(str(number), each, random, monkeypatch) for number, each in enumerate(engines)]
        await asyncio.gather(*(worker.live(40) for worker in workers))
        for worker in workers:
            worker.may_crash = False
            if not await worker.engine.update_presence(worker.lease, 60):
                await worker.begin()
        with place.client() as client:
            leases = f"{place.namespace}:{{%leases}}"
            for lease in cast(list[bytes], client.zrange(leases, 0, -1)):
                if lease.decode() not in [worker.lease for worker in workers]:
                    client.zadd(leases, {lease: 1})
        await engines[0].expire_presence(0)
        present = {
            (f"room:{number}", connection): data
            for number in range(6)
            for connection, data in (await engines[0].presence(f"room:{number}")).items()
        }
        assert present == {key: data for worker in workers for key, data in worker.entries.items()}
        for worker in workers:
            assert await worker.engine.update_presence(worker.lease, -1)
        assert sorted(await engines[0].expire_presence(0)) == sorted(leaves(*key) for key in present)
        assert place.ttls() == {}


# Losses of the server


async def test_entries_under_a_lost_lease_do_not_count_and_are_removed(place: Place) -> None:
    async with place.nodes(2) as (engine, other):
        assert await engine.update_presence("one", 60, [enters("chat"), enters("room")], begin=True)
        assert await other.update_presence("two", 60, [enters("chat", "b")], begin=True)
        with place.client() as client:
            assert client.zrem(f"{place.namespace}:{{%leases}}", "one") == 1
            assert await present(other, "chat") == ["b"]
            assert await present(other, "room") == []
            kept = client.hkeys(f"{place.namespace}:{{chat}}:presence")
            assert sorted(cast(list[bytes], kept)) == [b"#two", b"=b"]
        assert "{room}:presence" not in place.ttls()
        # The node notices it with its next renewal, and enters all its connections again.
        assert not await engine.update_presence("one", 60)
        assert await engine.update_presence("three", 60, [enters("chat"), enters("room")], begin=True)
        assert await present(other, "chat") == ["a", "b"]
        assert await present(other, "room") == ["a"]


async def test_entries_of_a_node_that_was_suspended_for_too_long_do_not_count(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.nodes(2) as (engine, other):
        enter = engine._presence._enter

        async def sleeping(*arguments: Any) -> Sequence[str]:
            await other.expire_presence(0)
            return await enter(*arguments)

        monkeypatch.setattr(engine._presence, "_enter", sleeping)
        assert await engine.update_presence("one", -1, [enters("chat")], begin=True)
        assert "{chat}:presence" in place.ttls()
        assert await present(other, "chat") == []
        assert place.ttls() == {}
        assert not await engine.update_presence("one", 60)


@pytest.mark.parametrize("lost", ["{%leases}:one", "{chat}:presence", "{%leases}"])
async def test_no_keys_are_left_at_the_end_if_one_was_evicted(place: Place, lost: str) -> None:
    async with place.nodes() as (engine,):
        assert await engine.update_presence("one", 60, [enters("chat")], begin=True)
        with place.client() as client:
            assert client.delete(f"{place.namespace}:{lost}") == 1
        is_known = await engine.update_presence("one", -1)
        assert is_known == (lost != "{%leases}")
        assert await engine.expire_presence(0) == []
        assert await engine.presence("chat") == {}
        # No node reads the notes of a lease that was lost; they expire.
        assert place.ttls().keys() == (set() if is_known else {"{%leases}:one"})


async def test_scripts_are_sent_again_to_a_server_that_has_lost_them() -> None:
    with redis_server() as server:
        place = Place(server.url)
        async with place.nodes() as (engine,):
            for connection in ("a", "b"):
                with server.client() as client:
                    client.script_flush()
                changes = [enters("chat", connection), leaves("chat", "absent")]
                assert await engine.update_presence("one", 60, changes, begin=True)
            assert await present(engine, "chat") == ["a", "b"]


async def test_a_server_without_memory_renews_and_removes_but_makes_no_entries() -> None:
    with redis_server() as server:
        place = Place(server.url)
        async with place.nodes() as (engine,):
            entered = [enters("chat"), enters("chat", "b"), enters("room")]
            assert await engine.update_presence("one", 60, entered, begin=True)
            with server.client() as client:
                client.config_set("maxmemory", "1mb")
                assert await engine.update_presence("one", 60)
                with pytest.raises(EngineUnavailable, match="maxmemory"):
                    await engine.update_presence("one", 60, [enters("chat", "c")])
                assert await engine.update_presence("one", 60, [leaves("chat"), leaves("room")])
                assert await present(engine, "chat") == ["b"]
                client.config_set("maxmemory", "0")
            assert await engine.update_presence("one", 60, [enters("chat", "c")])
            assert await present(engine, "chat") == ["b", "c"]


# Outages


async def test_a_lease_survives_a_reconnection(place: Place) -> None:
    async with place.nodes() as (engine,):
        assert await engine.update_presence("one", 60, [enters("chat")], begin=True)
        assert engine._supervisor.connections is not None
        await engine._supervisor.connections.close("cut")
        assert await engine.update_presence("one", 60, [enters("chat", "b")])
        assert await present(engine, "chat") == ["a", "b"]


async def test_entries_are_made_again_on_a_server_that_restarts_with_older_data() -> None:
    with redis_server() as server:
        place, collector = Place(server.url), Collector()
        engine = RedisEngine(place.url, place.namespace)
        await engine.start(collector)
        assert await engine.update_presence("one", 60, [enters("chat")], begin=True)
        older = server.back_up()
        assert await engine.update_presence("one", 60, [leaves("chat"), enters("chat", "b")])
        server.kill()
        server.restore(older)
        server.start()
        await collector.until(lambda: collector.reconnects == 1)
        assert await present(engine, "chat") == ["a"]
        assert not await engine.update_presence("one", 60)
        assert await engine.update_presence("two", 60, [enters("chat", "b")], begin=True)
        # A connection that had left is removed with the lease, which is not renewed any more.
        with server.client() as client:
            client.zadd(f"{place.namespace}:{{%leases}}", {"one": 1})
        assert await engine.expire_presence(0) == [leaves("chat")]
        assert await present(engine, "chat") == ["b"]
        await engine.stop()


async def test_all_calls_during_an_outage_fail_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presence, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr(supervisor, "ANSWER_TIMEOUT", 0.5)
    with redis_server() as server:
        collector = Collector()
        engine = RedisEngine(server.url)
        await engine.start(collector)
        assert await engine.update_presence("one", 60, [enters("chat")], begin=True)
        server.kill()
        async with asyncio.timeout(DEADLINE):
            answers = await asyncio.gather(
                *(engine.update_presence("one", 60, [enters("chat", str(n))]) for n in range(20)),
                engine.expire_presence(0),
                engine.presence("chat"),
                return_exceptions=True,
            )
        assert {type(answer) for answer in answers} == {EngineUnavailable}
        server.start()
        await collector.until(lambda: collector.reconnects == 1)
        assert await engine.update_presence("two", 60, [enters("chat", "b")], begin=True)
        assert await present(engine, "chat") == ["a", "b"]
        await engine.stop()


# Names


async def test_internal_channels_work_like_all_others(place: Place) -> None:
    channel = "\x01presence:room:1"
    async with place.nodes() as (engine,):
        assert await engine.update_presence("one", 60, [enters(channel, "{ü}=#")], begin=True)
        assert await present(engine, channel) == ["{ü}=#"]
        assert await engine.presence("presence:room:1") == {}
        assert await engine.update_presence("one", -1)
        assert await engine.expire_presence(0) == [leaves(channel, "{ü}=#")]


async def test_a_channel_may_have_the_name_of_the_key_of_the_leases(place: Place) -> None:
    names = ["%leases", "%leases}:one", "leases", "{%leases}"]
    async with place.nodes() as (engine,):
        assert await engine.update_presence("one", 60, [enters(each) for each in names], begin=True)
        for name in names:
            assert await present(engine, name) == ["a"]


async def test_namespaces_and_databases_are_kept_apart(redis_url: str) -> None:
    places = [Place(redis_url), Place(f"{redis_url}/1"), Place(redis_url)]
    places[1].namespace = places[0].namespace
    for number, place in enumerate(places):
        async with place.nodes() as (engine,):
            assert await engine.update_presence("one", -1, [enters("chat", str(number))], begin=True)
            assert await present(engine, "chat") == [str(number)]
    async with places[0].nodes() as (engine,):
        assert await engine.expire_presence(0) == [leaves("chat", "0")]
    async with places[1].nodes() as (engine,):
        assert await present(engine, "chat") == ["1"]
