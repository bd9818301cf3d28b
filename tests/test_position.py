"""The position of a channel, to which a route joins the state that it returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from hubbub import EngineUnavailable, History, Hub, HubNotRunning, InvalidChannel, Position
from hubbub.core.publication import START
from hubbub.testing import FakeEngine, FakeServer
from tests.clients import DEADLINE, connect, http_client, receive_json
from tests.uvicorn_process import serve


def make(url: str, namespace: str) -> Hub:
    hub = Hub(url, namespace=namespace)
    hub.channel("room:{id}", history=History(size=500))
    hub.channel("plain")
    return hub


async def follows_the_publications(hub: Hub, other: Hub) -> None:
    assert await hub.position("room:1") == START
    assert str(await hub.position("room:1")) == "start"
    for number in range(3):
        published = await other.publish("room:1", number)
        assert await hub.position("room:1") == await other.position("room:1") == published
    assert Position.parse(str(published)) == published
    assert await hub.history("room:1", since=published) == []
    assert await hub.position("room:2") == START
    await other.remove_history("room:1")
    removed = await hub.position("room:1")
    assert removed.offset == 0
    assert removed.epoch != published.epoch


async def joins_a_state(hub: Hub, other: Hub) -> None:
    """Load the state again and again while it changes, as a route does; no change may be missing."""
    state: list[int] = []

    async def change() -> None:
        for number in range(100):
            state.append(number)
            await other.publish("room:state", number)

    async def load() -> None:
        while not changing.done():
            since = await hub.position("room:state")
            loaded = len(state)
            await asyncio.sleep(0)
            later = [int(each.data) for each in await hub.history("room:state", since=str(since))]
            # Everything after the loaded state follows, in order.
            assert later == list(range(since.offset, since.offset + len(later)))
            assert since.offset <= loaded

    changing = asyncio.create_task(change())
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(load(), load(), changing)
    assert (await hub.position("room:state")).offset == 100


async def test_the_position_is_read_across_processes(engine_url: str, namespace: str) -> None:
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(make(engine_url, namespace)) for _ in range(2)]
        await follows_the_publications(one, two)
        await joins_a_state(one, two)


async def test_the_position_is_read_in_one_process(namespace: str) -> None:
    async with make("memory://", namespace) as hub:
        await follows_the_publications(hub, hub)
        await joins_a_state(hub, hub)


async def test_a_client_follows_the_state_that_it_has_loaded(log: Path) -> None:
    """The example of the documentation."""
    async with serve("stock:app", log, command="hubbub run") as server, http_client() as http:
        url = server.http + "/stock/lamp"
        loaded = (await http.get(url)).json()
        assert loaded == {"since": "start", "count": 0}
        for count in (5, 4):
            assert (await http.post(url, params={"count": count})).status_code == 200
            later = (await http.get(url)).json()
            assert later["count"] == count
            async with connect(f"{server.ws}/stock/lamp?since={loaded['since']}") as client:
                begun = await receive_json(client)
                assert (begun["type"], begun["recovered"]) == ("subscribed", True)
                publication = await receive_json(client)
                assert (publication["id"], publication["data"]) == (later["since"], {"count": count})
            loaded = later


# Errors


@pytest.fixture
async def hub(namespace: str) -> AsyncIterator[Hub]:
    async with make("memory://", namespace) as hub:
        yield hub


@pytest.mark.parametrize("channel", ["plain", "unknown", "room:1:2", "", "a\nb", "x" * 256])
async def test_a_channel_without_history_has_no_position(channel: str, hub: Hub) -> None:
    with pytest.raises(InvalidChannel, match="Expected"):
        await hub.position(channel)


async def test_a_hub_that_does_not_run_reads_no_position(namespace: str) -> None:
    with pytest.raises(HubNotRunning):
        await make("memory://", namespace).position("room:1")


async def test_an_engine_that_cannot_be_reached_is_an_error(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = make("memory://", namespace)
    engine = FakeEngine(FakeServer())
    monkeypatch.setattr(hub, "engine", engine)
    monkeypatch.setattr(type(engine), "is_alone", True)
    async with hub:
        engine.disconnect()
        with pytest.raises(EngineUnavailable):
            await hub.position("room:1")
