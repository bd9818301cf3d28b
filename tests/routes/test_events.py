"""The door for event streams on real servers: every byte, its refusals, its ends, and resuming."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.clients import DEADLINE, eventually, exchange, http_client
from tests.events import Event, Parser
from tests.uvicorn_process import ROOT, Server, free_port, serve

APP = "tests.apps.events:app"


@pytest.fixture(params=["uvicorn", "hubbub run"])
def command(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


class Listener:
    """An event stream that is read."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.parser = Parser()
        self.raw = b""
        self._chunks = response.aiter_raw()
        self._events: list[Event] = []

    async def next(self) -> Event:
        """Wait for the next event."""
        async with asyncio.timeout(DEADLINE):
            while not self._events:
                chunk = await anext(self._chunks)
                self.raw += chunk
                self._events += self.parser.feed(chunk)
        return self._events.pop(0)

    async def texts(self, *texts: str) -> None:
        """Wait for ``texts``, and for nothing else."""
        assert [(await self.next()).data for _ in texts] == list(texts)

    async def rest(self) -> list[Event]:
        """Read to the end of the stream."""
        async with asyncio.timeout(DEADLINE):
            async for chunk in self._chunks:
                self._events += self.parser.feed(chunk)
        return self._events


@asynccontextmanager
async def listening(server: Server, path: str, last_event_id: str | None = None) -> AsyncIterator[Listener]:
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    async with (
        http_client() as http,
        http.stream("GET", f"{server.http}/channels/{path}", headers=headers) as response,
    ):
        assert response.status_code == 200, await response.aread()
        yield Listener(response)


async def post(server: Server, path: str, body: bytes | str = b"", **headers: str) -> Any:
    async with http_client() as http:
        answer = await http.post(f"{server.http}/{path}", content=body, headers=headers)
        assert answer.status_code == 200
        return answer.json()


async def publish(server: Server, channel: str, *texts: str) -> list[str]:
    return [await post(server, f"publish/{channel}", text.encode()) for text in texts]


@asynccontextmanager
async def serving(log: Path, command: str = "uvicorn", **options: Any) -> AsyncIterator[Server]:
    async with serve(APP, log, command=command, cwd=ROOT, **options) as server:
        yield server


# The bytes


async def test_every_byte_of_a_stream(command: str, log: Path) -> None:
    async with serving(log, command) as server:
        (top,) = await publish(server, "room:1", "first")
        head = b"GET /channels/room:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(head)
            async with asyncio.timeout(DEADLINE):
                answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                assert answer.startswith("http/1.1 200 ok\r\n")
                for line in (
                    "content-type: text/event-stream; charset=utf-8",
                    "cache-control: no-store",
                    "x-accel-buffering: no",
                ):
                    assert f"\r\n{line}\r\n" in answer
                opening = (
                    f"retry: 2000\nevent: subscribed\nid: {top}\n"
                    f'data: {{"type":"subscribed","id":"{top}"}}\n\n'
                )
                assert await chunk(reader) == opening.encode()
                (second,) = await publish(server, "room:1", "one\ntwo\r\nthree\rfour")
                expected = f"id: {second}\ndata: one\ndata: two\ndata: three\ndata: four\n\n"
                assert await chunk(reader) == expected.encode()
                third = await post(server, "publish/room:1", b"\x00\xff", kind="binary")
                assert await chunk(reader) == f"event: binary\nid: {third}\ndata: AP8=\n\n".encode()
        finally:
            writer.close()


async def chunk(reader: asyncio.StreamReader) -> bytes:
    size = int(await reader.readline(), 16)
    return (await reader.readexactly(size + 2))[:-2]


async def test_a_channel_without_history_has_no_ids(log: Path) -> None:
    async with serving(log) as server, listening(server, "plain:1?since=17:ab") as listener:
        opening = await listener.next()
        assert opening.json == {"type": "subscribed", "id": None, "recovered": False}
        await publish(server, "plain:1", "hi")
        await listener.texts("hi")
        assert b"id:" not in listener.raw


async def test_where_a_stream_begins(log: Path) -> None:
    async with serving(log) as server:
        ids = await publish(server, "room:1", "1", "2", "3")
        async with listening(server, "room:1?history=2") as listener:
            # The position before the first publication that follows.
            opening = await listener.next()
            assert (opening.id, opening.json) == (ids[0], {"type": "subscribed", "id": ids[0]})
            await listener.texts("2", "3")
            await publish(server, "room:1", "4")
            await listener.texts("4")
        for path, header in (
            (f"room:1?since={ids[1]}", None),
            ("room:1", ids[1]),
            # A browser that reconnects repeats its URL.
            (f"room:1?since={ids[0]}&history=9", ids[1]),
        ):
            async with listening(server, path, header) as listener:
                opening = await listener.next()
                assert opening.id == ids[1]
                assert opening.json == {"type": "subscribed", "id": ids[1], "recovered": True}
                await listener.texts("3", "4")
        async with listening(server, "room:1?since=start") as listener:
            assert (await listener.next()).json["recovered"] is True
            await listener.texts("1", "2", "3", "4")


@pytest.mark.parametrize("last", ["1:lost", "garbage", "17", "99999999999999999999:x", "", "start:x"])
async def test_a_last_event_id_that_is_lost_or_malformed_begins_at_the_top(last: str, log: Path) -> None:
    async with serving(log) as server:
        (top,) = await publish(server, "room:1", "1")
        async with listening(server, "room:1", last) as listener:
            opening = await listener.next()
            assert (opening.id, opening.json) == (
                top,
                {"type": "subscribed", "id": top, "recovered": False},
            )
            await publish(server, "room:1", "2")
            await listener.texts("2")


async def test_refusals_are_statuses(command: str, log: Path) -> None:
    async with serving(log, command) as server, http_client() as http:

        async def status(path: str, method: str = "GET", **headers: str) -> int:
            answer = await http.request(method, server.http + path, headers=headers)
            if answer.status_code >= 400:
                assert answer.json()["detail"]
            return answer.status_code

        assert await status("/channels/other") == 404
        assert await status("/channels/") == 422
        assert await status("/channels/" + "x" * 256) == 422
        for query in (
            *("since=", "since=17", "since=x:y", "history=x", "history=-1", "history=1.5"),
            *("presence=x", "presence=", "snapshot=2", "snapshot=1"),
        ):
            assert await status(f"/channels/room:1?{query}") == 422, query
        assert await status("/channels/plain:1?history=1") == 422
        assert await status("/channels/plain:1?presence=users") == 422
        assert await status("/channels/room:1", "DELETE") == 405
        assert await status("/channels/room:1", origin="https://evil.example") == 403
        assert await status("/channels/room:1", **{"sec-fetch-dest": "image"}) == 403
        stats = await server.get_json("/stats")
        assert (stats["connections"], stats["streams"]) == (0, 0)


# Presence, snapshots


async def test_presence_is_sent_after_the_opening_and_then_joins_and_leaves(log: Path) -> None:
    async with serving(log) as server:
        path = "room:1?presence=users&user=ann"
        async with listening(server, path) as ann:
            assert (await ann.next()).name == "subscribed"
            event = await ann.next()
            (entry,) = event.json.pop("entries")
            assert (event.name, event.json["type"]) == ("presence", "presence")
            assert set(json.loads(event.data)) == {"type", "entries"}
            assert (entry["user"], entry["info"]) == ("ann", {"name": "ann"})
            async with listening(server, "room:1?user=ben") as ben:
                await ben.next()
                event = await ann.next()
                assert (event.name, event.json["entries"][0]["user"]) == ("join", "ben")
                await publish(server, "room:1", "hi")
                await ben.texts("hi")
                await ann.texts("hi")
            event = await ann.next()
            assert (event.name, event.json["entries"][0]["user"]) == ("leave", "ben")
            # The event keeps the id of the last publication.
            assert event.id


async def test_a_snapshot_joined_to_the_stream_and_by_itself(log: Path) -> None:
    async with serving(log) as server, http_client() as http:
        await post(server, "boards/1/7")
        answer = await http.get(f"{server.http}/channels/board:1?snapshot=1")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        top = answer.json()["id"]
        assert answer.json() == {"id": top, "data": [7]}
        async with listening(server, "board:1") as listener:
            opening = await listener.next()
            assert opening.json == {"type": "subscribed", "id": top, "data": [7]}
            await post(server, "boards/1/8")
            await listener.texts("8")
        async with listening(server, "board:1", top) as listener:
            assert (await listener.next()).json == {"type": "subscribed", "id": top, "recovered": True}
            await listener.texts("8")
        async with listening(server, "board:1", "1:lost") as listener:
            opening = await listener.next()
            assert opening.json["recovered"] is False
            assert opening.json["data"] == [7, 8]
        # A name with a slash, percent-encoded.
        async with listening(server, "board%3Aa%2Fb%20c%3Fd") as listener:
            await listener.next()
            await publish(server, "board:a%2Fb%20c%3Fd", "hi")
            await listener.texts("hi")


async def test_concurrent_changes_are_in_the_snapshots_of_streams_or_follow(log: Path) -> None:
    async with serving(log) as server, http_client() as http:
        count = 300

        async def change(first: int) -> None:
            for number in range(first, count, 4):
                await http.post(f"{server.http}/boards/1/{number}")

        async def listen(after: int) -> set[int]:
            await asyncio.sleep(after / 100)
            async with listening(server, "board:1") as listener:
                found = set((await listener.next()).json["data"])
                while len(found) < count:
                    found.add(int((await listener.next()).data))
                return found

        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
            for first in range(4):
                tasks.create_task(change(first))
            listeners = [tasks.create_task(listen(after)) for after in range(10)]
        assert all(each.result() == set(range(count)) for each in listeners)


# Ends


async def test_a_disconnected_user_gets_the_code_and_the_reason(command: str, log: Path) -> None:
    async with serving(log, command) as server, listening(server, "board:1?user=ann") as listener:
        await listener.next()
        await post(server, "disconnect/ann")
        (event,) = await listener.rest()
        assert (event.name, event.data) == (
            "close",
            '{"type":"close","code":3503,"reason":"disconnected"}',
        )
        stats = await server.get_json("/stats")
        assert (stats["connections"], stats["left"]) == (0, ["ann"])


async def test_an_expiring_identity_is_announced_and_ends_the_stream(log: Path) -> None:
    async with serving(log) as server, listening(server, "room:1?user=ann&lifetime=2") as listener:
        assert (await listener.next()).name == "subscribed"
        event = await listener.next()
        assert (event.name, event.data) == ("expiring", '{"type":"expiring","seconds":2}')
        (event,) = await listener.rest()
        assert (event.name, event.json["code"]) == ("close", 3005)


async def test_a_server_that_stops_ends_streams_without_close(command: str, log: Path) -> None:
    async with serving(log, command) as server, listening(server, "room:1") as listener:
        await listener.next()
        await publish(server, "room:1", "hi")
        await listener.texts("hi")
        stopping = asyncio.create_task(server.stop())
        assert await listener.rest() == []
        assert await stopping in (0, -signal.SIGTERM)
    assert "Traceback" not in server.log


async def test_a_client_that_vanishes_is_noticed(command: str, log: Path) -> None:
    async with serving(log, command) as server:
        sock = await open_stream(server, "board:1?user=ann")
        # RST instead of FIN (SO_LINGER in socket(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        await eventually(lambda: is_empty(server))
        assert (await server.get_json("/stats"))["left"] == ["ann"]
    assert "Traceback" not in server.log


async def is_empty(server: Server) -> bool:
    stats = await server.get_json("/stats")
    return bool(stats["connections"] == stats["streams"] == stats["subscriptions"] == stats["backlog"] == 0)


async def open_stream(server: Server, path: str) -> socket.socket:
    """Open a stream, and read its head only, with as little buffered for the client as possible."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE):
        await loop.sock_connect(sock, ("127.0.0.1", server.port))
        await loop.sock_sendall(sock, f"GET /channels/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert (await loop.sock_recv(sock, 100)).startswith(b"HTTP/1.1 200")
    return sock


async def read_to_the_end(sock: socket.socket) -> None:
    """Read all that was on its way, up to the end of the connection."""
    async with asyncio.timeout(DEADLINE):
        with suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(sock, 65_536):
                pass


@pytest.mark.parametrize("channel", ["room:1", "plain:1"])
async def test_a_client_that_reads_nothing_holds_no_memory(command: str, channel: str, log: Path) -> None:
    async with serving(log, command) as server:
        sock = await open_stream(server, channel)
        try:

            async def is_slow() -> bool:
                await post(server, f"publish/{channel}?count=20", b"x" * 50_000)
                stats = await server.get_json("/stats")
                # The limit, and what uvicorn has been given already.
                assert stats["backlog"] < 200_000
                return bool(stats["slow"] == 1)

            await eventually(is_slow)
            await eventually(lambda: is_empty(server))
            # The connection is dropped, and not left to the kernel.
            await read_to_the_end(sock)
        finally:
            sock.close()
        # Others are not affected.
        async with listening(server, channel) as listener:
            await listener.next()
            await publish(server, channel, "hi")
            await listener.texts("hi")
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log


async def test_a_client_that_stalls_below_the_limit_is_given_up_in_time(log: Path) -> None:
    async with serving(log, env={"SEND_TIMEOUT": "1"}) as server:
        sock = await open_stream(server, "plain:1")
        try:
            # More than the kernels hold for it, and less than the outbox does, goes out in pieces.
            async def is_given_up() -> bool:
                stats = await server.get_json("/stats")
                if stats["backlog"] == 0 and stats["slow"] == 0:
                    await post(server, "publish/plain:1", b"x" * 90_000)
                return bool(stats["slow"] == 1)

            await eventually(is_given_up)
            await eventually(lambda: is_empty(server))
        finally:
            sock.close()


# Servers, middleware


async def test_all_servers(server_name: str, log: Path) -> None:
    async with serving(log, server_name) as server:
        ids = await publish(server, "room:1", "1", "2")
        async with listening(server, "room:1", ids[0]) as listener:
            assert (await listener.next()).json["recovered"] is True
            await listener.texts("2")
            await publish(server, "room:1", "3")
            await listener.texts("3")
        await eventually(lambda: is_empty(server))


@pytest.mark.parametrize("middleware", ["gzip", "http"])
async def test_middleware_of_the_app_buffers_nothing(middleware: str, command: str, log: Path) -> None:
    async with serving(log, command, env={"MIDDLEWARE": middleware}) as server:
        ids = await publish(server, "room:1", "1", "2")
        async with listening(server, "room:1", ids[0]) as listener:
            assert "content-encoding" not in listener.response.headers
            assert (await listener.next()).json["recovered"] is True
            await listener.texts("2")
            for number in range(20):
                await publish(server, "room:1", str(number))
                await listener.texts(str(number))
        await eventually(lambda: is_empty(server))
        async with listening(server, "board:1?user=ann") as listener:
            await listener.next()
            await post(server, "disconnect/ann")
            assert [each.name for each in await listener.rest()] == ["close"]
        async with http_client() as http:
            assert (await http.get(f"{server.http}/channels/other")).status_code == 404
        async with listening(server, "room:1") as listener:
            await listener.next()
            stopping = asyncio.create_task(server.stop())
            assert await listener.rest() == []
            await stopping
    assert "Traceback" not in server.log


async def test_a_request_with_a_body_is_a_stream_all_the_same(log: Path) -> None:
    async with serving(log) as server:
        head = b"GET /channels/room:1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
        answer = await exchange(server.port, head + b"x" * 100_000, until=b"\n\n")
        assert b"event: subscribed" in answer
        await eventually(lambda: is_empty(server))


# Resuming


async def test_a_stream_resumes_after_kill_and_restart(command: str, tmp_path: Path) -> None:
    port = free_port()
    options: dict[str, Any] = {"port": port, "env": {"HUBBUB_URL": f"sqlite:///{tmp_path / 'hub.db'}"}}
    async with serving(tmp_path / "1.log", command, **options) as server:
        async with listening(server, "room:1") as listener:
            await listener.next()
            await publish(server, "room:1", "1")
            last = await listener.next()
            await publish(server, "room:1", "2", "3")
        await server.stop(signal.SIGKILL)
    async with (
        serving(tmp_path / "2.log", command, **options) as server,
        listening(server, "room:1", last.id) as listener,
    ):
        assert (await listener.next()).json == {"type": "subscribed", "id": last.id, "recovered": True}
        await listener.texts("2", "3")
        await publish(server, "room:1", "4")
        await listener.texts("4")
