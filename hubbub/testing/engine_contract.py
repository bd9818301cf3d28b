"""The contract of engines: tests that every engine passes, ours and those of other packages.

::

    from hubbub.engines import Engine
    from hubbub.testing import EngineContract

    class TestMyEngine(EngineContract):
        def make(self) -> Engine:
            return MyEngine("my://localhost", namespace=self.namespace)

The tests are run by pytest with pytest-asyncio in its mode ``auto``. The engines that ``make`` returns share
one server: two of them are two nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from secrets import token_hex
from typing import ClassVar

from hubbub.core.history import History
from hubbub.core.publication import START, Position, Publication, publication_ids
from hubbub.engines.base import Engine, PresenceChange, Top
from hubbub.exceptions import HubNotRunning

#: Seconds after which a test fails.
DEADLINE = 60.0

#: The history of most channels in tests.
HISTORY = History(size=100, ttl=60)

_ids = publication_ids()


def publication(channel: str, text: str, exclude: str | None = None) -> Publication:
    """Return a publication of ``text`` with an id of its own."""
    return Publication(channel, text.encode(), "text", exclude, id=next(_ids))


def _enters(channel: str, connection: str) -> PresenceChange:
    return PresenceChange(channel, connection, b"\0" + connection.encode())


def _leaves(channel: str, connection: str) -> PresenceChange:
    return PresenceChange(channel, connection, None)


class Collector:
    """A sink that keeps all publications, and counts outages.

    ::

        from hubbub.testing import Collector, publication

        collector = Collector()
        await engine.start(collector)
        await engine.subscribe("chat")
        await engine.publish(publication("chat", "hello"))
        await collector.heard("chat", ["hello"])
    """

    def __init__(self) -> None:
        #: All publications, in the order in which they came.
        self.publications: list[Publication] = []
        #: Outages that have begun, and that have ended.
        self.disconnects = 0
        self.reconnects = 0

    def on_publication(self, publication: Publication) -> None:
        self.publications.append(publication)

    def on_disconnect(self, reason: str) -> None:
        self.disconnects += 1

    def on_reconnect(self) -> None:
        self.reconnects += 1

    def texts(self, channel: str) -> list[str]:
        """Return the texts of the publications to ``channel``."""
        return [each.data.decode() for each in self.publications if each.channel == channel]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` is true.

        :raises TimeoutError: it was not within ``DEADLINE`` seconds.
        """
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def heard(self, channel: str, texts: Sequence[str]) -> None:
        """Wait until exactly ``texts`` have come in ``channel``, in this order."""
        with suppress(TimeoutError):
            await self.until(lambda: len(self.texts(channel)) >= len(texts))
        found = self.texts(channel)
        assert found == list(texts), f"Expected {len(texts)} publications, but got {len(found)}: {found}"


class EngineContract:
    """The tests. A subclass defines :meth:`make`, and :meth:`elapse` if its engine takes a clock."""

    #: Whether two engines of :meth:`make` reach each other.
    across_processes: ClassVar[bool] = True

    def setup_method(self) -> None:
        #: A namespace for this test alone.
        self.namespace = f"test-{token_hex(4)}"

    def make(self) -> Engine:
        """Return an engine that has not been started, on the server of this test."""
        raise TypeError(
            f"Expected {type(self).__name__} to define make(), but it does not. Return an engine that has "
            "not been started."
        )

    async def elapse(self, seconds: float) -> None:
        """Let ``seconds`` pass by the clock by which histories and leases expire.

        Waits as long. Where the engine takes a clock, a subclass advances that instead.
        """
        await asyncio.sleep(seconds)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[tuple[Engine, Collector]]:
        """One node: an engine that has been started, and its sink."""
        engine, collector = self.make(), Collector()
        await engine.start(collector)
        try:
            yield engine, collector
        finally:
            await engine.stop()

    @asynccontextmanager
    async def nodes(self) -> AsyncIterator[list[tuple[Engine, Collector]]]:
        """Two nodes if engines reach each other, else one."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(self.started())
                for _ in range(2 if self.across_processes else 1)
            ]

    # Channels without history

    async def test_a_publication_reaches_every_subscribed_node(self) -> None:
        async with self.nodes() as nodes:
            for engine, _ in nodes:
                assert await engine.subscribe("chat") == (START, "")
            texts = [str(number) for number in range(100)]
            for number, text in enumerate(texts):
                engine, _ = nodes[number % len(nodes)]
                assert await engine.publish(publication("chat", text)) == START
            for _, collector in nodes:
                await collector.until(lambda c=collector: len(c.texts("chat")) == 100)  # type: ignore[misc]
                assert sorted(collector.texts("chat"), key=int) == texts

    async def test_publications_of_one_node_arrive_in_order_and_complete(self) -> None:
        async with self.nodes() as nodes:
            (engine, _), (_, collector) = nodes[0], nodes[-1]
            await nodes[-1][0].subscribe("chat")
            sent = [
                Publication("chat", b"\x00\xff" * 1000, "binary", None, next(_ids)),
                Publication("chat", '{"a": "ü"}'.encode(), "json", "a connection", next(_ids)),
                Publication("chat", b"", "text", None, next(_ids)),
            ]
            for each in sent:
                await engine.publish(each)
            await collector.until(lambda: len(collector.publications) == 3)
            fields = [(each.data, each.kind, each.exclude, each.id) for each in collector.publications]
            assert fields == [(each.data, each.kind, each.exclude, each.id) for each in sent]

    async def test_publications_to_other_channels_do_not_arrive(self) -> None:
        if not self.across_processes:
            return  # An engine of one process may leave that to the node.
        async with self.nodes() as nodes:
            (engine, collector), *_ = nodes
            await engine.subscribe("chat")
            await engine.subscribe("left")
            await engine.publish(publication("left", "before"))
            await collector.heard("left", ["before"])
            await engine.unsubscribe("left")
            await engine.publish(publication("left", "after"))
            await engine.publish(publication("other", "never"))
            await engine.publish(publication("chat", "last"))
            await collector.heard("chat", ["last"])
            assert collector.texts("left") == ["before"]
            assert collector.texts("other") == []

    async def test_a_channel_without_history_keeps_no_publications(self) -> None:
        async with self.started() as (engine, _):
            await engine.publish(publication("chat", "gone"))
            assert await engine.history("chat") == ([], START) or await engine.history("chat") == ((), START)

    async def test_channel_names_may_hold_special_characters(self) -> None:
        names = ["a b", "größe:ß", "*", "x" * 255, "{tag}", "a'b\"c;--", "%s", "日本/語"]
        # Internal channels of hubs.
        names += ["\x01control", "\x01presence:" + "ü" * 255]
        async with self.started() as (engine, collector):
            for name in names:
                await engine.subscribe(name)
            for name in names:
                position = await engine.publish(publication(name, name), HISTORY)
                assert position.offset == 1
                await collector.heard(name, [name])
                assert [each.data.decode() for each in (await engine.history(name)).publications] == [name]

    # History

    async def test_offsets_rise_by_one_and_are_the_same_everywhere(self) -> None:
        async with self.nodes() as nodes:
            for engine, _ in nodes:
                await engine.subscribe("chat", HISTORY)

            async def publish(node: int, count: int) -> list[Position]:
                engine, _ = nodes[node]
                return [
                    await engine.publish(publication("chat", f"{node}:{n}"), HISTORY) for n in range(count)
                ]

            answers = await asyncio.gather(*(publish(node % len(nodes), 25) for node in range(4)))
            positions = sorted(position for each in answers for position in each)
            assert [position.offset for position in positions] == list(range(1, 101))
            assert len({position.epoch for position in positions}) == 1
            page = await nodes[0][0].history("chat")
            assert page.position == positions[-1]
            assert [each.offset for each in page.publications] == list(range(1, 101))
            for _, collector in nodes:
                await collector.until(lambda c=collector: len(c.publications) >= 100)  # type: ignore[misc]
                assert [each.id for each in collector.publications] == [each.id for each in page.publications]
                assert [each.position for each in collector.publications] == positions

    async def test_history_can_be_read_from_any_position_either_way(self) -> None:
        async with self.started() as (engine, _):
            positions = [await engine.publish(publication("chat", str(n)), HISTORY) for n in range(1, 11)]
            epoch = positions[0].epoch

            async def read(*arguments: object, **options: object) -> list[int]:
                page = await engine.history("chat", *arguments, **options)  # type: ignore[arg-type]
                assert page.position == positions[-1]
                assert [each.data.decode() for each in page.publications] == [
                    str(each.offset) for each in page.publications
                ]
                return [each.offset for each in page.publications]

            assert await read() == list(range(1, 11))
            assert await read(START) == list(range(1, 11))
            assert await read(Position(7, epoch)) == [8, 9, 10]
            assert await read(Position(7, epoch), 2) == [8, 9]
            assert await read(Position(10, epoch)) == []
            assert await read(Position(99, epoch)) == []
            assert await read(None, 3) == [1, 2, 3]
            assert await read(None, 0) == []
            assert await read(None, 3, True) == [10, 9, 8]
            assert await read(Position(4, epoch), None, True) == [3, 2, 1]
            assert await read(Position(4, epoch), 2, True) == [3, 2]
            assert await read(Position(5, "another")) == []

    async def test_history_keeps_the_newest_publications(self) -> None:
        async with self.started() as (engine, _):
            for number in range(1, 21):
                last = await engine.publish(publication("chat", str(number)), History(size=5, ttl=60))
            page = await engine.history("chat")
            assert [each.offset for each in page.publications] == [16, 17, 18, 19, 20]
            assert page.position == last

    async def test_publications_older_than_the_ttl_expire(self) -> None:
        async with self.started() as (engine, _):
            history = History(size=100, ttl=2)
            await engine.publish(publication("chat", "old"), history)
            await self.elapse(1.5)
            await engine.publish(publication("chat", "young"), history)

            async def kept() -> list[bytes]:
                return [each.data for each in (await engine.history("chat")).publications]

            async with asyncio.timeout(DEADLINE):
                while await kept() == [b"old", b"young"]:
                    await self.elapse(0.05)
            assert await kept() == [b"young"]
            last = await engine.publish(publication("chat", "new"), history)
            assert last.offset == 3

    async def test_subscribing_returns_the_position_of_the_channel(self) -> None:
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            position, _ = await engine.subscribe("chat", HISTORY)
            assert position.offset == 0
            assert position.epoch
            first = await engine.publish(publication("chat", "1"), HISTORY)
            assert first == (1, position.epoch)
            assert (await other.subscribe("chat", HISTORY)).position == first

    async def test_tops_are_read_of_many_channels_at_once(self) -> None:
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            names = ["plain", *(f"room:{number}" for number in range(250)), "never"]
            published = {}
            for number in range(3):
                for name in names[1:-1:10]:
                    each = publication(name, str(number))
                    published[name] = (await other.publish(each, HISTORY), each.id)
            await other.publish(publication("plain", "1"))
            tops = await engine.tops(names)
            assert tops == [published.get(name, (START, "")) for name in names]
            assert await engine.tops([]) == []
            name = names[1]
            assert await engine.subscribe(name, HISTORY) == published[name]
            await other.remove_history(name)
            position, newest = (await engine.tops([name]))[0]
            assert position.epoch != published[name][0].epoch
            assert (position.offset, newest) == (0, "")

    async def test_the_top_is_where_the_next_history_begins(self) -> None:
        """A state that is read after the top misses nothing that was published after its change."""
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            (top,) = await engine.tops(["chat"])
            assert top == (START, "")
            for number in range(1, 4):
                await other.publish(publication("chat", str(number)), HISTORY)
                page = await engine.history("chat", top.position)
                assert [each.data for each in page.publications] == [str(number).encode()]
                (top,) = await engine.tops(["chat"])
                # Reading it changes nothing.
                assert [top] == await engine.tops(["chat"])
                assert top.position == page.position == (await other.tops(["chat"]))[0].position
                assert (await engine.history("chat", top.position)).publications == []

    async def test_a_channel_that_was_published_to_can_be_declared_again(self) -> None:
        """A node subscribes again in order to declare a history after data was lost."""
        async with self.started() as (engine, collector):
            await engine.subscribe("chat")
            assert await engine.publish(publication("chat", "1")) == START
            position, _ = await engine.subscribe("chat", HISTORY)
            assert position.epoch
            assert (await engine.publish(publication("chat", "2"))).offset == position.offset + 1
            await collector.heard("chat", ["1", "2"])

    async def test_a_sink_that_raises_affects_one_publication_only(self) -> None:
        """Neither later publications nor the publisher's call fail, and it is no outage."""

        class Raising(Collector):
            def on_publication(self, publication: Publication) -> None:
                super().on_publication(publication)
                if publication.data == b"2":
                    raise LookupError("a sink that raises")

        engine, collector = self.make(), Raising()
        await engine.start(collector)
        try:
            for history in (None, HISTORY):
                name = "kept" if history else "plain"
                await engine.subscribe(name, history)
                for number in range(5):
                    await engine.publish(publication(name, str(number)), history)
                await collector.heard(name, ["0", "1", "2", "3", "4"])
            assert collector.disconnects == collector.reconnects == 0
        finally:
            await engine.stop()

    async def test_a_channel_with_history_keeps_it(self) -> None:
        """A publisher that does not declare the history gets the next offset all the same."""
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            await engine.subscribe("chat", History(size=2, ttl=60))
            positions = [await other.publish(publication("chat", str(n))) for n in range(3)]
            assert [position.offset for position in positions] == [1, 2, 3]
            assert [each.offset for each in (await engine.history("chat")).publications] == [2, 3]

    async def test_removing_the_history_begins_a_new_epoch(self) -> None:
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            before = await engine.publish(publication("chat", "1"), HISTORY)
            await other.remove_history("chat")
            page = await engine.history("chat")
            assert list(page.publications) == []
            assert page.position.epoch != before.epoch
            after = await engine.publish(publication("chat", "2"), HISTORY)
            assert after == (1, page.position.epoch)
            await engine.remove_history("never used")

    async def test_an_idempotency_key_publishes_once(self) -> None:
        async with self.nodes() as nodes:
            (engine, collector), other = nodes[0], nodes[-1][0]
            await engine.subscribe("chat", HISTORY)
            first = await engine.publish(publication("chat", "1"), HISTORY, "key")
            assert await other.publish(publication("chat", "1"), HISTORY, "key") == first
            assert (await engine.publish(publication("chat", "2"), HISTORY, "other key")).offset == 2
            assert (await engine.publish(publication("other", "1"), HISTORY, "key")).offset == 1
            assert await engine.publish(publication("plain", "1"), None, "key") == START
            assert await other.publish(publication("plain", "1"), None, "key") == START
            await collector.heard("chat", ["1", "2"])

    # Presence

    async def test_every_node_reads_the_entries_of_all_nodes(self) -> None:
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            assert await engine.update_presence("one", 60, [_enters("chat", "a")], begin=True)
            assert await other.update_presence(
                "two", 60, [_enters("chat", "b"), _enters("ü", "b")], begin=True
            )
            for each in (engine, other):
                assert await each.presence("chat") == {"a": b"\x00a", "b": b"\x00b"}
                assert await each.presence("ü") == {"b": b"\x00b"}
                assert await each.presence("empty") == {}
            assert await engine.update_presence("one", 60, [_leaves("chat", "a"), _leaves("chat", "unknown")])
            assert await other.presence("chat") == {"b": b"\x00b"}

    async def test_presence_changes_are_made_in_order(self) -> None:
        async with self.started() as (engine, _):
            changes = [_enters("chat", "a"), _leaves("chat", "a"), _enters("chat", "b"), _leaves("chat", "b")]
            new = PresenceChange("chat", "a", b"new")
            assert await engine.update_presence("one", 60, [*changes, _enters("chat", "a"), new], begin=True)
            assert await engine.presence("chat") == {"a": b"new"}

    async def test_a_lapsed_lease_is_removed_once_with_all_its_entries(self) -> None:
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            entered = [_enters("chat", "a"), _enters("room", "a"), _enters("chat", "b")]
            assert await engine.update_presence("short", 0.05, entered, begin=True)
            assert await other.update_presence("long", 60, [_enters("chat", "c")], begin=True)
            await self.elapse(0.2)
            # Until the lease is removed, its entries stay.
            assert sorted(await other.presence("chat")) == ["a", "b", "c"]
            assert list(await other.expire_presence(grace=30)) == []
            removed = [*await other.expire_presence(0), *await engine.expire_presence(0)]
            assert sorted(removed) == sorted(_leaves(*change[:2]) for change in entered)
            assert sorted(await other.presence("chat")) == ["c"]
            assert await other.presence("room") == {}
            # A removed lease cannot be renewed.
            assert not await engine.update_presence("short", 60, [_enters("chat", "a")])
            assert sorted(await other.presence("chat")) == ["c"]

    async def test_a_lapsed_lease_can_be_renewed_until_it_is_removed(self) -> None:
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            assert await engine.update_presence("one", 0.05, [_enters("chat", "a")], begin=True)
            await self.elapse(0.2)
            assert await engine.update_presence("one", 60)
            assert list(await other.expire_presence(0)) == []
            assert sorted(await other.presence("chat")) == ["a"]

    async def test_a_lease_that_is_ended_lapses_at_once(self) -> None:
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            assert await engine.update_presence("one", 60, [_enters("chat", "a")], begin=True)
            assert await engine.update_presence("one", 0)
            await self.elapse(0.05)
            assert list(await other.expire_presence(0)) == [_leaves("chat", "a")]
            assert await other.presence("chat") == {}

    async def test_an_unknown_lease_is_not_renewed(self) -> None:
        async with self.started() as (engine, _):
            assert not await engine.update_presence("never begun", 60, [_enters("chat", "a")])
            assert await engine.presence("chat") == {}

    async def test_an_entry_made_again_under_a_new_lease_is_not_removed_with_the_old_one(self) -> None:
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            assert await engine.update_presence("old", 0.05, [_enters("chat", "a")], begin=True)
            assert await engine.update_presence("new", 60, [_enters("chat", "a")], begin=True)
            await self.elapse(0.2)
            assert list(await other.expire_presence(0)) == []
            assert sorted(await other.presence("chat")) == ["a"]
            assert await engine.update_presence("new", 60, [_leaves("chat", "a")])
            assert await other.presence("chat") == {}

    async def test_each_lease_is_removed_by_one_of_several_concurrent_calls(self) -> None:
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            for number in range(20):
                entered = [_enters(f"room:{room}", str(number)) for room in range(10)]
                assert await engine.update_presence(str(number), 0, entered, begin=True)
            await self.elapse(0.05)
            answers = await asyncio.gather(*(each.expire_presence(0) for each in (engine, other) * 5))
            assert sum(map(len, answers)) == 200
            assert len({change for each in answers for change in each}) == 200

    async def test_presence_of_many_connections(self) -> None:
        async with self.nodes() as nodes:
            engine, other = nodes[0][0], nodes[-1][0]
            entered = [_enters(f"room:{n % 10}", str(n)) for n in range(2000)]
            assert await engine.update_presence("one", 60, entered, begin=True)
            assert len(await other.presence("room:3")) == 200
            assert await engine.update_presence("one", 0)
            await self.elapse(0.05)
            assert len(await other.expire_presence(0)) == 2000
            assert await other.presence("room:3") == {}

    # Lifecycle

    async def test_an_engine_can_be_started_again(self) -> None:
        engine, before, after = self.make(), Collector(), Collector()
        for collector in (before, after):
            await engine.start(collector)
            await engine.subscribe("chat")
            await engine.publish(publication("chat", "hello"))
            await collector.heard("chat", ["hello"])
            await engine.stop()
        assert before.texts("chat") == after.texts("chat") == ["hello"]

    async def test_an_engine_that_does_not_run_refuses_every_call(self) -> None:
        engine = self.make()
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "publish": lambda: engine.publish(publication("chat", "hello")),
            "subscribe": lambda: engine.subscribe("chat"),
            "unsubscribe": lambda: engine.unsubscribe("chat"),
            "history": lambda: engine.history("chat"),
            "tops": lambda: engine.tops(["chat"]),
            "remove_history": lambda: engine.remove_history("chat"),
            "renew_epoch": lambda: engine.renew_epoch("chat", "epoch"),
            "update_presence": lambda: engine.update_presence("one", 60, begin=True),
            "expire_presence": lambda: engine.expire_presence(0),
            "presence": lambda: engine.presence("chat"),
        }

        async def accepted() -> list[str]:
            names = []
            for name, call in calls.items():
                with suppress(HubNotRunning):
                    await call()
                    names.append(name)
            return names

        assert await accepted() == []
        await engine.start(Collector())
        await engine.stop()
        assert await accepted() == []

    async def test_many_channels_and_concurrent_publishers(self) -> None:
        async with self.nodes() as nodes:
            channels = [f"room:{number}" for number in range(50)]
            subscriptions: list[Awaitable[Top]] = []
            for engine, _ in nodes:
                subscriptions += [engine.subscribe(channel, HISTORY) for channel in channels]
            await asyncio.gather(*subscriptions)
            await asyncio.gather(
                *(
                    nodes[number % len(nodes)][0].publish(publication(channel, str(number)), HISTORY)
                    for number in range(10)
                    for channel in channels
                )
            )
            for _, collector in nodes:
                await collector.until(lambda c=collector: len(c.publications) >= 500)  # type: ignore[misc]
                for channel in channels:
                    offsets = [each.offset for each in collector.publications if each.channel == channel]
                    assert offsets == list(range(1, 11))
