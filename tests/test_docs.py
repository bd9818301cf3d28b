"""README and docs show code that runs: each block is in ``examples/``, and tests run the examples."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.async_api import expect
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.browser import chromium
from tests.clients import DEADLINE, connect, http_client, receive, receive_json
from tests.commands import hubbub, running
from tests.uvicorn_process import ROOT, free_port, serve

expect.set_options(timeout=DEADLINE * 1000)

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# It is about earlier versions, too.
PAGES.remove(ROOT / "CHANGELOG.md")
EXAMPLES = [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.html")]

#: All commands in the docs, and the place where each is run.
COMMANDS = {
    "pip install /path/to/hubbub": "test_wheel.py, but for the installation",
    "hubbub run quickstart:app": "below",
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
            if block.language == "python":
                assert re.search(r"^(from|import) ", block.code, flags=re.MULTILINE), "no import"
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


def behaviours() -> list[tuple[str, str]]:
    """The word and the files of each behaviour in docs/architecture.md."""
    table = (ROOT / "docs" / "architecture.md").read_text().split("| Behaviour |", 1)[1].split("\n\n", 1)[0]
    rows = [line.split("|")[2:4] for line in table.splitlines()[2:]]
    return [(word.strip(), file) for word, files in rows for file in re.findall("`(.*?)`", files)]


@pytest.mark.parametrize(("word", "file"), behaviours())
def test_a_behaviour_is_in_a_file_of_its_name(word: str, file: str) -> None:
    assert (ROOT / "hubbub" / file).is_file()
    assert Path(file).stem == word


@pytest.mark.parametrize("page", ["architecture.md", "glossary.md"])
def test_paths_in_the_docs_exist(page: str) -> None:
    paths = re.findall(r"`([\w./-]+(?:\.py|\.c|/))`", (ROOT / "docs" / page).read_text())
    assert paths
    missing = [path for path in paths if not any((root / path).exists() for root in (ROOT / "hubbub", ROOT))]
    assert not missing


def test_headings_that_links_name_exist() -> None:
    def anchors(page: Path) -> set[str]:
        headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            assert anchor in anchors(page.parent / target if target else page), (
                f"{page.name}: {target}#{anchor}"
            )


async def test_the_quickstart_of_the_readme_survives_a_restart(log: Path, tmp_path: Path) -> None:
    install, python, command, *_ = found = blocks(ROOT / "README.md")
    html = found[-1]
    assert [block.language for block in (install, python, command, html)] == ["sh", "python", "sh", "html"]
    (tmp_path / "quickstart.py").write_text(python.code)
    (tmp_path / "quickstart.html").write_text(html.code)
    words = [*shlex.split(command.code), "--port", "{port}"]
    port = free_port()
    async with chromium() as browser:
        pages = [await browser.new_page() for _ in range(2)]
        async with serve("", log, command=words, cwd=tmp_path, port=port) as server:
            for page in pages:
                await page.goto(server.http)
                await expect(page.get_by_role("status")).to_have_text("Connected.")
            for page, text in zip(pages, ["hello", "<b>hi</b>"], strict=True):
                await page.keyboard.type(text)
                await page.keyboard.press("Enter")
                await expect(pages[0].get_by_role("listitem").last).to_have_text(text)
            await server.stop(signal.SIGKILL)
        for page in pages:
            await expect(page.get_by_role("status")).to_have_text("Reconnecting…")
        async with serve("", log, command=[*words, "--workers", "2"], cwd=tmp_path, port=port):
            for page in pages:
                await expect(page.get_by_role("status")).to_have_text("Connected.")
                await expect(page.get_by_role("listitem")).to_have_text(["hello", "<b>hi</b>"])
            await pages[1].keyboard.type("again")
            await pages[1].keyboard.press("Enter")
            for page in pages:
                await expect(page.get_by_role("listitem")).to_have_text(["hello", "<b>hi</b>", "again"])


async def test_the_chat_of_the_docs_is_a_chat(log: Path, tmp_path: Path) -> None:
    python, html, command, *_ = blocks(ROOT / "docs" / "chat.md")
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


@pytest.mark.parametrize("command", ["hubbub run", "uvicorn"])
async def test_the_notifications_example_authenticates_its_clients(log: Path, command: str) -> None:
    async with (
        serve("notifications:app", log, command=command, probe="/docs") as server,
        http_client(base_url=server.http) as http,
    ):
        url = f"{server.ws}/notifications"
        for query in ("", "?token=wrong"):
            with pytest.raises(InvalidStatus) as refused:
                await connect(url + query)
            assert refused.value.response.status_code == 401
        assert (await http.post("/reports")).status_code == 401
        cookie = {"Cookie": "session=token-of-bob"}
        async with (
            connect(f"{url}?token=token-of-ann") as ann,
            connect(url, additional_headers=cookie) as bob,
        ):
            for client, query, headers in ((bob, "", cookie), (ann, "?token=token-of-ann", {})):
                assert (await http.post(f"/reports{query}", headers=headers)).status_code == 202
                progress = [(await receive_json(client))["percent"] for _ in range(3)]
                assert progress == [0, 50, 100]
                assert (await http.post(f"/logout{query}", headers=headers)).status_code == 204
                # Nothing of the other user's came before.
                with pytest.raises(ConnectionClosed):
                    await receive(client)
                assert (client.close_code, client.close_reason) == (4001, "logged out")


@pytest.mark.parametrize("command", ["hubbub run", "uvicorn"])
async def test_the_tokens_example_renews_tokens_on_an_open_socket(log: Path, command: str) -> None:
    # Two seconds after it has got its token, the page gets the notice of its expiry.
    env = {"CHAT_SECRET": "a secret of at least thirty-two bytes", "CHAT_TOKEN_SECONDS": "27"}
    async with serve("tokens:app", log, command=command, env=env) as server, chromium() as browser:
        page = await browser.new_page()
        await page.goto(server.http)
        await page.get_by_label("Name").fill("ann")
        await page.get_by_label("Password").fill("wrong")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("status")).to_have_text("Log in: wrong name or password.")
        await page.get_by_label("Password").fill("teapot")
        async with page.expect_response("**/renew") as renewed, page.expect_websocket() as opened:
            await page.get_by_role("button", name="Log in").click()
            await expect(page.get_by_role("status")).to_have_text("Connected.")
            socket = await opened.value
            async with socket.expect_event(
                "framereceived", lambda data: "refreshed" in data, timeout=DEADLINE * 1000
            ):
                assert (await renewed.value).ok
        await page.get_by_label("Message").fill("hello")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("listitem")).to_have_text(["ann: hello"])
        token = await (
            await page.request.post(f"{server.http}/login", data={"name": "bob", "password": "lantern"})
        ).json()
        async with connect(f"{server.ws}/channels/room:1?token={token}") as bob:
            await bob.send('{"type": "say", "text": "hi"}')
            await expect(page.get_by_role("listitem").first).to_have_text("bob: hi")
        for query in ("", "?token=wrong"):
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{server.ws}/channels/room:1{query}")
            assert refused.value.response.status_code == 401
        await browser.close()
        # Neither the page's token nor that of the URL is in the log.
        assert "eyJ" not in server.log
        assert "Traceback" not in server.log


@pytest.mark.parametrize("command", ["hubbub run", "uvicorn"])
async def test_the_broadcast_example_publishes_from_background_tasks(log: Path, command: str) -> None:
    async with serve("broadcast:app", log, command=command, probe="/docs") as server:
        async with (
            connect(f"{server.ws}/ws") as ann,
            connect(f"{server.ws}/ws") as bob,
            http_client(base_url=server.http) as http,
        ):
            for client in (ann, bob):
                times = [datetime.fromisoformat((await receive_json(client))["time"]) for _ in range(2)]
                assert times[0] < times[1]
            assert (await http.post("/news", params={"text": "hello"})).status_code == 202
            for client in (ann, bob):
                while "time" in (message := await receive_json(client)):
                    pass
                assert message == {"text": "hello"}
        await server.stop()
        assert "Traceback" not in server.log


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
            "Expected a message that fits one of Line, Clear, but got one with errors: line.points: "
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


async def test_the_lobby_example_knows_who_is_online_in_all_processes(log: Path, tmp_path: Path) -> None:
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
