"""Two workers, many clients, several publishers: everybody gets everything, once, in one order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from secrets import token_hex

import httpx2
import pytest

from tests.clients import connect, eventually
from tests.listeners import Listener
from tests.servers import ROOT, Server, serve

#: Clients, publishers, and messages of each of them.
CLIENTS, PUBLISHERS, MESSAGES = 40, 4, 100


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def engine_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hub.db'}"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def namespace() -> str:
    return f"test_{token_hex(4)}"


@asynccontextmanager
async def listening(server: Server, count: int) -> AsyncIterator[list[Listener]]:
    pids: set[int] = set()

    async def all_serve() -> bool:
        pids.add((await server.get_json("/pid"))["pid"])
        return len(pids) == 2

    await eventually(all_serve)
    listeners = [Listener(f"{server.ws}/chat") for _ in range(count)]
    try:
        async with asyncio.timeout(30):
            for listener in listeners:
                await listener.is_joined.wait()
        yield listeners
    finally:
        for listener in listeners:
            await listener.stop()


async def publish(server: Server, name: str, count: int) -> None:
    """Publish over HTTP, each message again until it is accepted; its key keeps it from being doubled."""
    async with httpx2.AsyncClient(timeout=20) as client:
        for number in range(count):
            while True:
                try:
                    answer = await client.post(f"{server.http}/publish", params={"text": f"{name}:{number}"})
                    if answer.status_code == 200 and "offset" in answer.json():
                        break
                except httpx2.TransportError:
                    pass
                await asyncio.sleep(0.05)


async def heard_all(listeners: Sequence[Listener], count: int) -> None:
    await eventually(lambda: all(len(listener.received) >= count for listener in listeners), timeout=60)
    assert {len(listener.received) for listener in listeners} == {count}
    assert len({tuple(listener.received) for listener in listeners}) == 1
    assert len(set(listeners[0].received)) == count
    assert [listener.losses for listener in listeners] == [0] * len(listeners)


def workers(
    log: Path, url: str, namespace: str, port: int | None = None
) -> AbstractAsyncContextManager[Server]:
    return serve(
        "tests.apps.streams:app",
        log,
        args=["--workers", "2", "--drain-seconds", "2"],
        port=port,
        cwd=ROOT,
        probe="/pid",
        env={"HUBBUB_TEST_URL": url, "HUBBUB_TEST_NAMESPACE": namespace},
    )


@pytest.mark.timeout(180)
async def test_everybody_gets_everything_in_one_order(engine_url: str, namespace: str, log: Path) -> None:
    async with workers(log, engine_url, namespace) as server:
        async with listening(server, CLIENTS) as listeners:

            async def talk(name: str) -> None:
                async with connect(f"{server.ws}/chat") as client:
                    for number in range(MESSAGES):
                        await client.send(f"{name}:{number}")
                    await eventually(
                        lambda: all(f"{name}:{MESSAGES - 1}" in each.received for each in listeners),
                        timeout=60,
                    )

            await asyncio.gather(*(talk(f"p{number}") for number in range(PUBLISHERS)))
            await heard_all(listeners, PUBLISHERS * MESSAGES)
        # Of one publisher, first in is first out.
        first = [text for text in listeners[0].received if text.startswith("p0:")]
        assert first == [f"p0:{number}" for number in range(MESSAGES)]


@pytest.mark.timeout(180)
async def test_a_worker_that_is_killed_costs_nobody_a_message(
    engine_url: str, namespace: str, log: Path
) -> None:
    async with workers(log, engine_url, namespace) as server, listening(server, 20) as listeners:
        publishing = asyncio.gather(
            *(publish(server, f"p{number}", MESSAGES) for number in range(PUBLISHERS))
        )
        for _ in range(2):
            await asyncio.sleep(0.5)
            os.kill(listeners[0].pids[-1], signal.SIGKILL)
            count = len(listeners[0].pids)
            await eventually(lambda count=count: len(listeners[0].pids) > count)  # type: ignore[misc]
        await publishing
        await heard_all(listeners, PUBLISHERS * MESSAGES)


@pytest.mark.timeout(180)
async def test_a_restart_of_the_server_costs_nobody_a_message(
    engine_url: str, namespace: str, log: Path
) -> None:
    async with workers(log, engine_url, namespace) as server:
        listeners = [Listener(f"{server.ws}/chat") for _ in range(20)]
        try:
            for listener in listeners:
                await asyncio.wait_for(listener.is_joined.wait(), 30)
            await publish(server, "before", 50)
            await server.stop()
            async with workers(log, engine_url, namespace, server.port) as again:
                await publish(again, "after", 50)
                await heard_all(listeners, 100)
        finally:
            for listener in listeners:
                await listener.stop()
