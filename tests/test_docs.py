"""README and docs show code that runs: each block is in ``examples/``, and tests run the examples."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.asyncio.client import ClientConnection

from tests.clients import DEADLINE, connect, http_client, receive, receive_json
from tests.commands import hubbub, running
from tests.uvicorn_process import ROOT, serve

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# It is about earlier versions, too.
PAGES.remove(ROOT / "CHANGELOG.md")
EXAMPLES = [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.html")]

#: All commands in the docs, and the place where each is run.
COMMANDS = {
    "hubbub run chat:app": "below",
    "hubbub publish sqlite:///deploys.db deploys 'v3 tomorrow'": "below",
    "hubbub publish sqlite:///deploys.db deploys "
    """'{"version": "v3", "status": "planned"}' --json""": "below",
    "hubbub tail sqlite:///deploys.db deploys --history 10": "below",
    "hubbub doctor sqlite:///deploys.db": "below",
    "scripts/test": "CI",
    "scripts/bench --quick": "tests/benchmarks, without the installation",
    "scripts/bench": "likewise",
}


class Block(NamedTuple):
    page: str
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [Block(page.name, language, code) for language, code in found]


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=lambda block: f"{block.page}-{block.language}")
def test_each_block_is_run_by_a_test(block: Block) -> None:
    match block.language:
        case "python" | "html":
            assert block.code, "an empty block"
            assert any(block.code in example.read_text() for example in EXAMPLES), "not in examples/"
        case "sh":
            assert set(block.code.splitlines()) <= COMMANDS.keys()
        case _:
            assert not block.language, f"nothing runs {block.language}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", prose):
        if "://" not in target:
            assert (page.parent / target).exists(), target


async def test_the_code_and_the_command_of_the_readme_are_a_chat(log: Path, tmp_path: Path) -> None:
    python, html, command, *_ = blocks(ROOT / "README.md")
    assert (python.language, html.language, command.language) == ("python", "html", "sh")
    (tmp_path / "chat.py").write_text(python.code)
    (tmp_path / "chat.html").write_text(html.code)
    words = [*shlex.split(command.code), "--port", "{port}"]
    async with (
        serve("chat:app", log, command=words, cwd=tmp_path) as server,
        connect(f"{server.ws}/ws/1") as ann,
        http_client() as http,
    ):
        assert (await http.get(server.http)).text == html.code
        async with connect(f"{server.ws}/ws/2") as bob:
            await bob.send("hello")
            assert await receive(bob) == "You wrote: hello"
            assert await receive(ann) == await receive(bob) == "Client #2 says: hello"
        assert await receive(ann) == "Client #2 left the chat"


async def test_the_orders_example_publishes_from_a_route(log: Path) -> None:
    async with (
        serve("orders:app", log, probe="/docs") as server,
        connect(f"{server.ws}/orders/7/live") as watcher,
        http_client(base_url=server.http) as http,
    ):
        # The socket is accepted a moment before it subscribes, and a change may be published in between.
        received = asyncio.create_task(receive_json(watcher))
        while not received.done():
            await http.put("/orders/7", json={"status": "packed"})
            await asyncio.wait([received], timeout=0.05)
        assert received.result() == {"status": "packed"}


async def test_the_board_example_validates_messages(log: Path) -> None:
    async with (
        serve("board:app", log, probe="/docs") as server,
        connect(f"{server.ws}/boards/1") as ann,
        connect(f"{server.ws}/boards/1") as bob,
    ):
        await ann.send('{"type": "line", "points": [[0, 0]]}')
        error = await receive_json(ann)
        assert error["code"] == 107
        assert error["errors"][0]["loc"] == ["line", "points"]
        assert error["message"].startswith(
            "Expected a message that fits one of Line,Clear, but line.points: "
        )
        await bob.send('{"type": "circle"}')
        assert (await receive_json(bob))["errors"][0]["type"] == "union_tag_invalid"
        await ann.send('{"type": "line", "points": [[0, 0], [1, 2.5]]}')
        assert await receive_json(bob) == {"type": "line", "points": [[0.0, 0.0], [1.0, 2.5]]}
        await bob.send('{"type": "clear"}')
        assert await receive_json(ann) == {"type": "clear"}


async def test_the_history_example_lets_clients_catch_up(log: Path) -> None:
    async with serve("history:app", log, command="hubbub run", probe="/docs") as server:
        url = f"{server.ws}/rooms/5"

        async def said(client: ClientConnection) -> str:
            return str((await receive_json(client))["data"]["text"])

        async with connect(url) as first:
            opening = await receive_json(first)
            assert opening["type"] == "subscribed"
            await first.send("1")
            message = await receive_json(first)
            assert message["data"] == {"type": "said", "text": "1"}
        async with connect(url) as other:
            assert await receive_json(other) == opening
            assert await receive_json(other) == message
            for text in ("2", "3"):
                await other.send(text)
                assert await said(other) == text
            async with connect(f"{url}?since={message['id']}") as again:
                assert (await receive_json(again))["recovered"] is True
                assert [await said(again) for _ in range(2)] == ["2", "3"]
                await other.send("4")
                assert await said(again) == "4"
            async with connect(f"{url}?since=1:another") as lost:
                assert (await receive_json(lost))["recovered"] is False
                await other.send("5")
                assert await said(lost) == "5"


async def test_the_lobby_example_shows_the_presence_of_all_processes(log: Path, tmp_path: Path) -> None:
    source = (ROOT / "examples" / "lobby.py").read_text()
    (tmp_path / "lobby.py").write_text(source)
    async with (
        serve("lobby:app", log, args=("--workers", "2"), cwd=tmp_path, probe="/health") as server,
        http_client(base_url=server.http) as http,
        AsyncExitStack() as stack,
    ):
        ann = await stack.enter_async_context(connect(f"{server.ws}/rooms/tea?user=ann"))
        assert [each["user"] for each in (await receive_json(ann))["entries"]] == ["ann"]
        # Enough connections to reach both workers.
        bobs = [await stack.enter_async_context(connect(f"{server.ws}/rooms/tea?user=bob")) for _ in range(8)]
        joined = await receive_json(ann)
        assert (joined["type"], joined["entries"][0]["user"]) == ("join", "bob")
        assert joined["entries"][0]["info"] == {"colour": "blue"}
        for bob in bobs:
            assert {each["user"] for each in (await receive_json(bob))["entries"]} >= {"bob"}
        assert (await http.get("/rooms/tea")).json() == {"ann": 1, "bob": 8}
        assert (await http.delete("/users/bob")).status_code == 204
        for bob in bobs:
            await asyncio.wait_for(bob.wait_closed(), DEADLINE)
            assert bob.close_code == 4003
        assert (await receive_json(ann))["type"] == "leave"
        assert (await http.get("/rooms/tea")).json() == {"ann": 1}
        assert (await http.get("/health")).json()["ok"]


async def test_the_shop_example_publishes_with_the_commit(postgres_url: str, log: Path) -> None:
    env = {"SHOP_DATABASE": postgres_url}
    async with (
        serve("shop:app", log, command="hubbub run", probe="/docs", env=env) as server,
        connect(f"{server.ws}/orders/live") as client,
        http_client() as http,
    ):
        answer = await http.post(f"{server.http}/orders", json={"item": "lamp"})
        assert answer.json() == {"item": "lamp"}
        assert await receive_json(client) == {"item": "lamp"}


async def test_the_deploys_example_publishes_from_each_kind_of_process(log: Path, tmp_path: Path) -> None:
    env = {"DEPLOYS_HUB": f"sqlite:///{tmp_path / 'deploys.db'}"}

    async def script(*words: str) -> str:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, *words],
            cwd=ROOT / "examples",
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return str(done.stdout)

    *_, shell, doctor = blocks(ROOT / "docs" / "publishing.md")
    text, json, tail = (shlex.split(line)[1:] for line in shell.code.splitlines())
    async with (
        serve("deploys:app", log, command="hubbub run", probe="/docs", env=env) as server,
        connect(f"{server.ws}/deploys/live") as client,
        http_client(base_url=server.http) as http,
    ):
        assert await receive_json(client) == {"status": "the app is up"}
        assert (await http.post("/deploys", params={"version": "v1"})).json() == 2
        assert await receive_json(client) == {"version": "v1", "status": "planned"}
        await script("tasks.py", "v1", "v2")
        received = [await receive_json(client) for _ in range(4)]
        for version in ("v1", "v2"):
            assert [each["status"] for each in received if each["version"] == version] == ["building", "done"]
        assert await script("announce.py", "v3 soon") == "This was message 7.\n"
        assert await receive(client) == "v3 soon"
        for words in (text, json):
            assert (await asyncio.to_thread(hubbub, *words, cwd=tmp_path)).code == 0
        assert await receive(client) == "v3 tomorrow"
        assert await receive_json(client) == {"version": "v3", "status": "planned"}
        with running(*tail, cwd=tmp_path) as watching:
            printed = [await asyncio.to_thread(watching.out) for _ in range(9)]
        assert printed[6].endswith("  v3 soon")
        examined = await asyncio.to_thread(hubbub, *shlex.split(doctor.code)[1:], cwd=tmp_path)
        assert examined.out.endswith("All is well.\n")
