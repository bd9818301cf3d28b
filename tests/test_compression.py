"""permessage-deflate on real servers: compressed once for all who want it, and in order."""

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

#: Nothing of it waits in the buffers of the kernel for long.
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
    """For tests that only look at what they have sent themselves."""
    name = request.param
    log = tmp_path_factory.mktemp("server") / "server.log"
    async with serve(APP, log, command=name, args=ARGS[name], cwd=ROOT, probe="/stats") as server:
        yield server


class Ear:
    """A client that compresses, and sees which of the messages that it gets are compressed."""

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

    async def hears(self) -> str | bytes:
        return await receive(self.client)


async def open_ear(url: str, **options: Any) -> Ear:
    client = await connect(url, compression="deflate", **options)
    ear = Ear(client)
    if "without" not in url:
        assert await ear.hears() == "ready"
        ear.on_the_wire.clear()
    return ear


async def compressions(server: Server) -> int:
    return int((await server.get_json("/compressions"))["compressions"])


@cache
def message(number: int) -> str:
    """Half of it goes by compression."""
    return f"{number:08}" + random.Random(number).randbytes((LONG_BYTES - 8) // 2).hex()


async def test_a_publication_is_compressed_once_for_all_and_the_others_get_it_as_it_is(
    server: Server,
) -> None:
    ears = [await open_ear(f"{server.ws}/news/disconnect") for _ in range(50)]
    plain = [await connect(f"{server.ws}/news/disconnect") for _ in range(5)]
    for client in plain:
        assert not client.protocol.extensions
        assert await receive(client) == "ready"
    before = await compressions(server)
    said = ["a" * 1000, "short", message(1)]
    for text in said:
        await plain[0].send(text)
    for text in said:
        assert {await ear.hears() for ear in ears} == {text}
        assert {await receive(client) for client in plain} == {text}
    assert await compressions(server) == before + 3
    for ear in ears:
        (first, length), second, (third, _) = ear.on_the_wire
        assert first
        assert length < 50
        assert second == (False, 5)
        assert third


async def test_nothing_is_compressed_for_nobody(server: Server) -> None:
    async with connect(f"{server.ws}/news/disconnect") as client:
        assert await receive(client) == "ready"
        await client.send("a" * 1000)
        assert await receive(client) == "a" * 1000
    assert await compressions(server) == 0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("size", [0, 1, THRESHOLD - 1, THRESHOLD, 70_000])
@pytest.mark.parametrize("kind", ["text", "binary", "json"])
async def test_what_is_said_is_heard_whatever_its_kind_and_size(
    shared_server: Server, kind: str, size: int
) -> None:
    ann = await open_ear(f"{shared_server.ws}/rooms/{kind}")
    bob = await open_ear(f"{shared_server.ws}/rooms/{kind}")
    text = "é" * (size // 2) + "x" * (size % 2)
    await ann.client.send(text)
    for ear in (ann, bob):
        heard = await ear.hears()
        assert isinstance(heard, bytes if kind == "binary" else str)
        said: Any = heard.decode() if isinstance(heard, bytes) else heard
        if kind == "json":
            said = json.loads(said)["said"]
        assert said == text
        ((is_compressed, length),) = ear.on_the_wire
        assert is_compressed is (size + (len('{"said":""}') if kind == "json" else 0) >= THRESHOLD)
        assert length <= max(THRESHOLD, 1000)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_does_not_get_smaller_goes_as_it_is(shared_server: Server) -> None:
    ear = await open_ear(f"{shared_server.ws}/rooms/hex")
    data = random.Random(1).randbytes(5000)
    await ear.client.send(data.hex())
    assert await ear.hears() == data
    assert ear.on_the_wire == [(False, 5000)]


@pytest.mark.asyncio(loop_scope="module")
async def test_handlers_without_a_hub_have_it_too(shared_server: Server) -> None:
    ear = await open_ear(f"{shared_server.ws}/without-the-hub")
    for text in ("short", "long " * 1000):
        await ear.client.send(text)
        assert [await ear.hears(), await ear.hears()] == [text, text.encode()]
    assert [is_compressed for is_compressed, _ in ear.on_the_wire] == [False, False, True, True]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("bits", "is_taken"), [(None, True), (15, True), (12, True), (11, False), (9, False), (8, False)]
)
async def test_a_client_with_a_smaller_window_gets_everything_as_it_is(
    shared_server: Server, bits: int | None, is_taken: bool
) -> None:
    # Repeats that are further apart than a small window is wide.
    text = random.Random(1).randbytes(2000).hex() * 5
    offer = ClientPerMessageDeflateFactory(server_max_window_bits=bits)
    async with connect(f"{shared_server.ws}/rooms/text", extensions=[offer]) as client:
        assert await receive(client) == "ready"
        windows = [
            extension.remote_max_window_bits
            for extension in client.protocol.extensions
            if isinstance(extension, PerMessageDeflate)
        ]
        assert windows == ([12] if is_taken else [])
        await client.send(text)
        assert await receive(client) == text


async def test_much_that_is_sent_over_time_is_no_bomb(server: Server) -> None:
    ear = await open_ear(f"{server.ws}/rooms/text")
    text = "x" * 1_000_000
    for _ in range(20):
        await ear.client.send(text)
        assert await ear.hears() == text


async def test_bombs_are_refused_and_leave_nothing_behind(server: Server) -> None:
    sender = PerMessageDeflate(True, True, 15, 12)
    bomb = Frame(Opcode.BINARY, bytes(100_000_000)).serialize(mask=True, extensions=[sender])
    assert len(bomb) < 200_000
    before = (await server.get_json("/compressions"))["resident_kib"]
    for _ in range(10):
        ear = await open_ear(f"{server.ws}/news/disconnect")
        ear.client.transport.write(bomb)
        assert (await closed(ear.client))[0] == 1009
    after = (await server.get_json("/compressions"))["resident_kib"]
    # What the server's limit, 16 MiB, lets out of one message may be left by the last one.
    assert after - before < 50_000


async def test_a_slow_client_whose_messages_are_dropped_hears_the_newest_in_order(server: Server) -> None:
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
            heard = [str(await receive(client))]
            while heard[-1] != message(1499):
                heard.append(str(await receive(client)))
            assert heard == sorted(set(heard))
            assert set(heard) <= {message(number) for number in range(1500)}
        assert (await stats(server))["backlog"] == 0
        # They are members as before.
        await talk(talker, 10, say=message)
        for client in slow.values():
            assert [str(await receive(client)) for _ in range(10)] == [message(n) for n in range(10)]
            await client.close()


async def test_a_client_that_pauses_and_goes_on_misses_nothing(server: Server) -> None:
    async with connect(f"{server.ws}/news/disconnect") as talker:
        assert await receive(talker) == "ready"
        ear = await connect_deaf(f"{server.ws}/news/disconnect", compression="deflate")
        for _ in range(2):
            rounds = 0
            while (await stats(server))["backlog"] == 0:
                await talk(talker, 20, say=message)
                rounds += 1
            ear.transport.resume_reading()
            for number in range(20 * rounds):
                assert await receive(ear) == message(number % 20)
            ear.transport.pause_reading()
        assert (await stats(server))["slow_disconnects"] == 0
        ear.transport.abort()


async def test_a_client_that_does_not_keep_up_is_told_so(server: Server) -> None:
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
async def test_without_the_option_it_is_not_offered(command: Command, log: Path) -> None:
    async with (
        serve(APP, log, command=command, cwd=ROOT, probe="/stats") as server,
        connect(f"{server.ws}/news/disconnect", compression="deflate") as client,
    ):
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers
        assert await receive(client) == "ready"


IN_A_PAGE = """(url) => new Promise((resolve) => {
    const socket = new WebSocket(url), heard = []
    socket.onmessage = ({ data }) => {
        heard.push(data)
        if (heard.length == 1) for (const text of ["short", "long ".repeat(1000)]) socket.send(text)
        if (heard.length == 3) resolve([socket.extensions, ...heard])
    }
})"""


async def test_a_browser_understands_it(server: Server) -> None:
    async with chromium() as browser:
        page = await browser.new_page()
        await page.goto(f"{server.http}/docs", wait_until="commit")
        extensions, *heard = await page.evaluate(IN_A_PAGE, f"{server.ws}/rooms/text")
    assert "permessage-deflate" in extensions
    assert "server_no_context_takeover" in extensions
    assert heard == ["ready", "short", "long " * 1000]
