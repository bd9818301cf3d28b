"""Presence with real engines and real workers that are killed, suspended, or lose their engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from tests.clients import DEADLINE, connect, eventually, http_client
from tests.engines.redis.server import redis_server
from tests.uvicorn_process import ROOT, Server, serve

#: Seconds after which the connections of a killed worker are removed.
TTL = 3.0


class Guest:
    """A client in the room that checks that the presence events it gets add up."""

    def __init__(self, socket: ClientConnection, user: str, pid: int) -> None:
        self.socket = socket
        self.user = user
        self.pid = pid
        self.present: dict[str, str] = {}
        #: How many events of each kind there were of each user.
        self.counts: Counter[str] = Counter()
        self.receiving = asyncio.create_task(self._receive())

    async def _receive(self) -> None:
        async for frame in self.socket:
            event = json.loads(frame)
            for entry in event["entries"]:
                self.counts[f"{event['type']} {entry['user']}"] += 1
                if event["type"] == "leave":
                    assert self.present.pop(entry["connection"]) == entry["user"]
                else:
                    assert entry["connection"] not in self.present
                    self.present[entry["connection"]] = entry["user"]

    @property
    def users(self) -> list[str]:
        return sorted(self.present.values())


@asynccontextmanager
async def two_workers(log: Path, url: str, ttl: float = TTL) -> AsyncIterator[Server]:
    env = {
        "HUBBUB_TEST_URL": url,
        "HUBBUB_TEST_NAMESPACE": f"test_{token_hex(4)}",
        "HUBBUB_TEST_TTL": str(ttl),
    }
    args = ["--workers", "2", "--drain-seconds", "2"]
    async with serve("tests.apps.present:app", log, args=args, cwd=ROOT, probe="/pid", env=env) as server:
        pids: set[int] = set()

        async def both_serve() -> bool:
            pids.add((await server.get_json("/pid"))["pid"])
            return len(pids) == 2

        await eventually(both_serve)
        yield server


@asynccontextmanager
async def guests(server: Server, count: int) -> AsyncIterator[list[Guest]]:
    """So many guests, some of them on either worker."""
    present: list[Guest] = []
    try:
        while len(present) < count:
            user = f"guest-{len(present):02}"
            socket = await connect(f"{server.ws}/room/{user}")
            pid = json.loads(await asyncio.wait_for(socket.recv(), DEADLINE))["pid"]
            if len(present) == count - 1 and {pid, *(guest.pid for guest in present)} == {pid}:
                await socket.close()
                continue
            present.append(Guest(socket, user, pid))
        users = [guest.user for guest in present]
        await eventually(lambda: all(guest.users == users for guest in present))
        yield present
    finally:
        for guest in present:
            guest.receiving.cancel()
            await guest.socket.close()


async def users_in_room(server: Server) -> Any:
    async with http_client() as client:
        return (await client.get(f"{server.http}/presence")).json()


def split(present: Sequence[Guest]) -> tuple[list[Guest], list[Guest]]:
    """The guests on the worker of the first one, and the others."""
    pid = present[0].pid
    return [each for each in present if each.pid == pid], [each for each in present if each.pid != pid]


async def test_the_connections_of_a_killed_worker_leave_once(engine_url: str, log: Path) -> None:
    async with two_workers(log, engine_url) as server, guests(server, 12) as present:
        doomed, others = split(present)
        assert await users_in_room(server) == [guest.user for guest in present]
        os.kill(doomed[0].pid, signal.SIGKILL)
        rest = sorted(guest.user for guest in others)
        await eventually(lambda: all(guest.users == rest for guest in others))
        for guest in others:
            leaves = {event: count for event, count in guest.counts.items() if event.startswith("leave")}
            assert leaves == {f"leave {each.user}": 1 for each in doomed}

        async def all_agree() -> bool:
            return bool(await users_in_room(server) == rest)

        await eventually(all_agree)


async def test_a_worker_that_was_suspended_enters_its_connections_again(engine_url: str, log: Path) -> None:
    async with two_workers(log, engine_url) as server, guests(server, 12) as present:
        suspended, others = split(present)
        os.kill(suspended[0].pid, signal.SIGSTOP)
        try:
            rest = sorted(guest.user for guest in others)
            await eventually(lambda: all(guest.users == rest for guest in others))
        finally:
            os.kill(suspended[0].pid, signal.SIGCONT)
        users = [guest.user for guest in present]
        await eventually(lambda: all(guest.users == users for guest in present))
        for guest in others:
            assert {guest.counts[f"leave {each.user}"] for each in suspended} == {1}


@pytest.mark.parametrize("keeps_data", [True, False])
async def test_no_connection_leaves_because_redis_is_restarted(log: Path, keeps_data: bool) -> None:
    with redis_server() as redis:
        async with two_workers(log, redis.url, ttl=10) as server, guests(server, 12) as present:
            redis.kill()
            if not keeps_data:
                redis.forget()
            redis.start()

            async def is_back() -> bool:
                state = await server.get_json("/state")
                return bool(state["ok"] and state["engine_outages"])

            await eventually(is_back)
            users = [guest.user for guest in present]

            async def all_are_there() -> bool:
                return bool(await users_in_room(server) == users)

            await eventually(all_are_there)
            # Longer than presence_ttl: by then a connection would have been removed.
            await asyncio.sleep(12)
            assert await users_in_room(server) == users
            for guest in present:
                assert guest.users == users
                assert not any(event.startswith("leave") for event in guest.counts)


async def test_a_user_is_disconnected_in_every_worker(engine_url: str, log: Path) -> None:
    async with two_workers(log, engine_url) as server, guests(server, 8) as present:
        sockets = [await connect(f"{server.ws}/room/uninvited") for _ in range(8)]
        async with http_client() as client:
            assert (await client.delete(f"{server.http}/users/uninvited")).status_code == 200
        for socket in sockets:
            await asyncio.wait_for(socket.wait_closed(), DEADLINE)
            assert socket.close_code == 3503
        assert all(guest.socket.close_code is None for guest in present)
