"""permessage-deflate on real servers: each message is compressed once for all clients, and in order."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode

from hubbub.core.compression import THRESHOLD
from tests.browser import chromium
from tests.clients import closed, connect, connect_deaf, receive
from tests.test_slow_clients import stats, talk
from tests.uvicorn_process import ROOT, SERVERS, Command, Server, serve

NAMES = ("hubbub run", "uvicorn --ws", "uvicorn")
ARGS = {"hubbub run": ("--compress",), "uvicorn --ws": (), "uvicorn": ()}
APP = "tests.apps.compressed:app"

#: Size of a message which soon fills the buffers of the kernel.
LONG_BYTES = 8192


@pytest.fixture(params=NAMES)
async def server(request: pytest.FixtureRequest, log: Path) -> AsyncIterator[Server]:
    name = request.param
    async with serve(APP, log, command=name, args=ARGS[name], cwd=ROOT, probe="/stats") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=NAMES)
async def shared_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """For tests that check only their own messages."""
    name = request.param
    log = tmp_path_factory.mktemp("server") / "server.log"
    async with serve(APP, log, command=name, args=ARGS[name], cwd=ROOT, probe="/stats") as server:
        yield server


class Listener:
    """A client that offers compression, and records which messages it receives compressed."""

    def __init__(self, client: ClientConnection) -> None:
        self.client = client
        self.on_the_wire: list[tuple[bool, int]] = []
        (extension,) = client.protocol.extensions
        decode = extension.decode

        def watched(frame: Frame, *, max_size: int | None = None) -> Frame:
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                self.on_the_wire.append((frame.rsv1, len(frame.data)))
            return decode(frame, max_size=max_size)

        extension.decode = watched  # type: ignore[method-assign]

    async def receive(self) -> str | bytes:
        return await receive(self.client)


async def listen(url: str, **options: Any) -> Listener:
    client = await connect(url, compression="deflate", **options)
    listener = Listener(client)
    if "without" not in url:
        assert await listener.receive() == "ready"
        listener.on_the_wire.clear()
    return listener


async def compressions(server: Server) -> int:
    return int((await server.get_json("/compressions"))["compressions"])


@cache
def message(number: int) -> str:
    """A text that compression halves."""
    return f"{number:08}" + random.Random(number).randbytes((LONG_BYTES - 8) // 2).hex()


async def test_a_publication_is_compressed_once_for_all_clients_that_support_it(
    server: Server,
) -> None:
    listeners = [await listen(f"{server.ws}/news/disconnect") for _ in range(50)]
    plain = [await connect(f"{server.ws}/news/disconnect") for _ in range(5)]
    for client in plain:
        assert not client.protocol.extensions
        assert await receive(client) == "ready"
    before = await compressions(server)
    texts = ["a" * 1000, "short", message(1)]
    for text in texts:
        await plain[0].send(text)
    for text in texts:
        assert {await listener.receive() for listener in listeners} == {text}
        assert {await receive(client) for client in plain} == {text}
    assert await compressions(server) == before + 3
    for listener in listeners:
        (first, length), second, (third, _) = listener.on_the_wire
        assert first
        assert length < 50
        assert second == (False, 5)
        assert third


async def test_without_a_client_that_supports_it_no_message_is_compressed(server: Server) -> None:
    async with connect(f"{server.ws}/news/disconnect") as client:
        assert await receive(client) == "ready"
        await client.send("a" * 1000)
        assert await receive(client) == "a" * 1000
    assert await compressions(server) == 0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("size", [0, 1, THRESHOLD - 1, THRESHOLD, 70_000])
@pytest.mark.parametrize("kind", ["text", "binary", "json"])
async def test_messages_of_every_kind_and_size_arrive(shared_server: Server, kind: str, size: int) -> None:
    ann = await listen(f"{shared_server.ws}/rooms/{kind}")
    bob = await listen(f"{shared_server.ws}/rooms/{kind}")
    text = "é" * (size // 2) + "x" * (size % 2)
    await ann.client.send(text)
    for listener in (ann, bob):
        message = await listener.receive()
        assert isinstance(message, bytes if kind == "binary" else str)
        content: Any = message.decode() if isinstance(message, bytes) else message
        if kind == "json":
            content = json.loads(content)["said"]
        assert content == text
        ((is_compressed, length),) = listener.on_the_wire
        assert is_compressed is (size + (len('{"said":""}') if kind == "json" else 0) >= THRESHOLD)
        assert length <= max(THRESHOLD, 1000)


@pytest.mark.asyncio(loop_scope="module")
async def test_incompressible_messages_are_sent_uncompressed(shared_server: Server) -> None:
    listener = await listen(f"{shared_server.ws}/rooms/hex")
    data = random.Random(1).randbytes(5000)
    await listener.client.send(data.hex())
    assert await listener.receive() == data
    assert listener.on_the_wire == [(False, 5000)]


@pytest.mark.asyncio(loop_scope="module")
async def test_endpoints_without_a_hub_compress_too(shared_server: Server) -> None:
    listener = await listen(f"{shared_server.ws}/without-the-hub")
    for text in ("short", "long " * 1000):
        await listener.client.send(text)
        assert [await listener.receive(), await listener.receive()] == [text, text.encode()]
    assert [is_compressed for is_compressed, _ in listener.on_the_wire] == [False, False, True, True]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("bits", "is_accepted"), [(None, True), (15, True), (12, True), (11, False), (9, False), (8, False)]
)
async def test_a_client_with_a_smaller_window_receives_uncompressed_messages(
    shared_server: Server, bits: int | None, is_accepted: bool
) -> None:
    # Its repetitions are further apart than the size of a small window.
    text = random.Random(1).randbytes(2000).hex() * 5
    offer = ClientPerMessageDeflateFactory(server_max_window_bits=bits)
    async with connect(f"{shared_server.ws}/rooms/text", extensions=[offer]) as client:
        assert await receive(client) == "ready"
        windows = [
            extension.remote_max_window_bits
            for extension in client.protocol.extensions
            if isinstance(extension, PerMessageDeflate)
        ]
        assert windows == ([12] if is_accepted else [])
        await client.send(text)
        assert await receive(client) == text


async def test_many_large_messages_over_time_are_no_bomb(server: Server) -> None:
    listener = await listen(f"{server.ws}/rooms/text")
    text = "x" * 1_000_000
    for _ in range(20):
        await listener.client.send(text)
        assert await listener.receive() == text


async def test_bombs_are_refused_and_leave_no_memory_behind(server: Server) -> None:
    sender = PerMessageDeflate(True, True, 15, 12)
    bomb = Frame(Opcode.BINARY, bytes(100_000_000)).serialize(mask=True, extensions=[sender])
    assert len(bomb) < 200_000
    before = (await server.get_json("/compressions"))["resident_kib"]
    for _ in range(10):
        listener = await listen(f"{server.ws}/news/disconnect")
        listener.client.transport.write(bomb)
        assert (await closed(listener.client))[0] == 1009
    after = (await server.get_json("/compressions"))["resident_kib"]
    # The last one may leave as much as the server's limit for one message, 16 MiB.
    assert after - before < 50_000


async def test_a_slow_client_with_dropped_messages_receives_the_newest_in_order(server: Server) -> None:
    async with connect(f"{server.ws}/news/disconnect") as talker:
        assert await receive(talker) == "ready"
        slow = {
            policy: await connect_deaf(f"{server.ws}/news/{policy}", compression="deflate")
            for policy in ("drop_oldest", "latest")
        }
        await talk(talker, 1500, say=message)
        assert (await stats(server))["dropped"] > 0
        for client in slow.values():
            client.transport.resume_reading()
            received = [str(await receive(client))]
            while received[-1] != message(1499):
                received.append(str(await receive(client)))
            assert received == sorted(set(received))
            assert set(received) <= {message(number) for number in range(1500)}
        assert (await stats(server))["backlog"] == 0
        # They are still subscribed.
        await talk(talker, 10, say=message)
        for client in slow.values():
            assert [str(await receive(client)) for _ in range(10)] == [message(n) for n in range(10)]
            await client.close()


async def test_a_client_that_pauses_and_continues_misses_no_message(server: Server) -> None:
    async with connect(f"{server.ws}/news/disconnect") as talker:
        assert await receive(talker) == "ready"
        listener = await connect_deaf(f"{server.ws}/news/disconnect", compression="deflate")
        for _ in range(2):
            rounds = 0
            while (await stats(server))["backlog"] == 0:
                await talk(talker, 20, say=message)
                rounds += 1
            listener.transport.resume_reading()
            for number in range(20 * rounds):
                assert await receive(listener) == message(number % 20)
            listener.transport.pause_reading()
        assert (await stats(server))["slow_disconnects"] == 0
        listener.transport.abort()


async def test_a_client_that_does_not_keep_up_is_disconnected_as_slow(server: Server) -> None:
    async with connect(f"{server.ws}/news/disconnect") as talker:
        assert await receive(talker) == "ready"
        deaf = await connect_deaf(f"{server.ws}/news/disconnect", compression="deflate")
        while (await stats(server))["slow_disconnects"] == 0:
            await talk(talker, 20, say=message)
        deaf.transport.resume_reading()
        assert (await closed(deaf))[0] == 3008


def without(words: Command) -> Command:
    return (*words, "--ws-per-message-deflate", "false")


@pytest.mark.parametrize(
    "command", [SERVERS["hubbub run"], without(SERVERS["uvicorn --ws"])], ids=["hubbub run", "uvicorn --ws"]
)
async def test_without_the_option_compression_is_not_offered(command: Command, log: Path) -> None:
    async with (
        serve(APP, log, command=command, cwd=ROOT, probe="/stats") as server,
        connect(f"{server.ws}/news/disconnect", compression="deflate") as client,
    ):
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers
        assert await receive(client) == "ready"


IN_A_PAGE = """(url) => new Promise((resolve) => {
    const socket = new WebSocket(url), received = []
    socket.onmessage = ({ data }) => {
        received.push(data)
        if (received.length == 1) for (const text of ["short", "long ".repeat(1000)]) socket.send(text)
        if (received.length == 3) resolve([socket.extensions, ...received])
    }
})"""


async def test_a_browser_supports_it(server: Server) -> None:
    async with chromium() as browser:
        page = await browser.new_page()
        await page.goto(f"{server.http}/docs", wait_until="commit")
        extensions, *received = await page.evaluate(IN_A_PAGE, f"{server.ws}/rooms/text")
    assert "permessage-deflate" in extensions
    assert "server_no_context_takeover" in extensions
    assert received == ["ready", "short", "long " * 1000]
