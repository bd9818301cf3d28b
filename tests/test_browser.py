"""The pages of the demo and of the examples, in a real browser on real servers."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    WebSocketRoute,
    expect,
)

from tests.browser import chromium
from tests.clients import DEADLINE
from tests.uvicorn_process import ROOT, Server, free_port, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEMO = "hubbub.demo.app:app"

#: The demo and the examples behind prefixes, so that every page shows that it finds its socket relative to
#: itself. The tests that kill a server have them at the root.
OUTER = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from hubbub.demo.app import app as demo
import chat, echo, items, manager

@asynccontextmanager
async def lifespan(app):
    async with demo.router.lifespan_context(demo):
        yield

app = FastAPI(lifespan=lifespan)
app.mount("/chats", demo)
for example in (chat, echo, items, manager):
    app.mount(f"/examples/{example.__name__}", example.app)
# The lifespan of a mounted app does not run: this app starts and stops its hub.
app.include_router(chat.hub.router, prefix="/examples/chat")
"""

numbers = count()

# In milliseconds; long enough for a busy machine.
expect.set_options(timeout=DEADLINE * 1000)


class Windows:
    """A browser's windows, with one page in each, since a background tab is drawn only once a second.

    Opening a window takes longer than most of the tests, so windows are reused, with their storage cleared.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._free: dict[str, list[BrowserContext]] = {}

    @asynccontextmanager
    async def page(self, *, clock: bool = False, **options: Any) -> AsyncIterator[Page]:
        """Open a page; with ``clock``, the test controls its time."""
        free = self._free.setdefault(repr(options), [])
        context = free.pop() if free and not clock else await self._open(options)
        if clock:
            await context.clock.install()
        page = await context.new_page()
        try:
            yield page
        finally:
            await page.close()
            if clock:
                # A window keeps a clock once it is installed.
                await context.close()
            else:
                await context.clear_cookies()
                free.append(context)

    async def _open(self, options: dict[str, Any]) -> BrowserContext:
        context = await self._browser.new_context(locale="en-GB", **options)
        await context.add_init_script(
            "try { if (!sessionStorage.old) localStorage.clear(); sessionStorage.old = true } catch {}"
        )
        # A window would close with its last page.
        await context.new_page()
        return context


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def windows() -> AsyncIterator[Windows]:
    async with chromium() as browser:
        yield Windows(browser)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "outer.py").write_text(OUTER)
    env = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "examples")])}
    async with serve("outer:app", folder / "log", cwd=folder, probe="/chats/", env=env) as server:
        yield server


@pytest.fixture
def room() -> str:
    """Return a room that no other test uses."""
    return f"room {next(numbers)}"


@dataclass
class Watched:
    """Requests and errors of the pages of a test."""

    hosts: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    # Browsers log errors about a server that is unreachable or refuses a request.
    expects_errors: bool = False

    def __call__(self, page: Page) -> None:
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))
        page.on("websocket", lambda socket: self.hosts.add(urlsplit(socket.url).hostname or ""))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._on_console)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)


@pytest.fixture
def watched() -> Watched:
    return Watched()


OpenPage: TypeAlias = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(windows: Windows, watched: Watched) -> AsyncIterator[OpenPage]:
    """Open pages, and check that none sends a request to another host or has an error."""
    async with AsyncExitStack() as stack:

        async def open_page(url: str | None = None, **options: Any) -> Page:
            page = await stack.enter_async_context(windows.page(**options))
            watched(page)
            if url is not None:
                await page.goto(url)
            return page

        yield open_page
    assert watched.hosts <= {"127.0.0.1"}
    assert watched.expects_errors or not watched.errors


@dataclass
class Tab:
    """The demo's page, with its elements found by their accessible names."""

    page: Page

    @property
    def text(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    @property
    def log(self) -> Locator:
        return self.page.get_by_role("log", name="Messages")

    @property
    def people(self) -> Locator:
        return self.page.get_by_role("region", name="Here now").get_by_role("listitem")

    @property
    def status(self) -> Locator:
        return self.page.get_by_role("status")

    @property
    def typing(self) -> Locator:
        return self.page.locator("#typing")

    def said(self, text: str) -> Locator:
        return self.log.get_by_role("listitem").filter(has_text=re.compile(rf"{re.escape(text)}\s"))

    def note(self, text: str) -> Locator:
        return self.log.get_by_text(text, exact=True)

    async def come_in(self, name: str) -> None:
        await self.page.get_by_label("Your name").fill(name)
        await self.page.get_by_role("button", name="Come in").click()
        await expect(self.status).to_have_text("Connected")

    async def say(self, text: str) -> None:
        await self.text.fill(text)
        await self.text.press("Enter")
        await expect(self.text).to_have_value("")

    async def shows_people(self, *names: str) -> None:
        shown = [re.compile(rf"{re.escape(name)}(you)?$") for name in names]
        await expect(self.people).to_have_text(shown)


@dataclass
class Demo:
    open_page: OpenPage
    url: str

    async def door(self, room: str, page: Page | None = None, **options: Any) -> Tab:
        """Open the page by a link to a room."""
        page = page or await self.open_page(**options)
        await page.goto(f"{self.url}#{quote(room)}")
        return Tab(page)

    async def come_in(self, room: str, name: str, page: Page | None = None, **options: Any) -> Tab:
        """Open the page in a tab that has stored the name, and so enters the room at once."""
        page = page or await self.open_page(**options)
        await page.add_init_script(f"sessionStorage.name = {json.dumps(name)}")
        await page.goto(f"{self.url}#{quote(room)}")
        await expect(Tab(page).status).to_have_text("Connected")
        return Tab(page)


@pytest.fixture
def demo(open_page: OpenPage, server: Server) -> Demo:
    return Demo(open_page, f"{server.http}/chats/")


# Talking


async def test_two_tabs_talk_and_one_leaves(demo: Demo, room: str) -> None:
    ann = await demo.door(room)
    await ann.come_in("Ann")
    await expect(ann.log).to_contain_text("No messages yet")
    bob = await demo.come_in(room, "Bob")
    await expect(ann.note("Bob came in")).to_have_count(1)
    for tab in (ann, bob):
        await tab.shows_people("Ann", "Bob")
    await ann.say("Hello, Bob")
    await bob.say("Hello, Ann\nhow are you?")
    for tab in (ann, bob):
        await expect(tab.log.locator(".said .text")).to_have_text(["Hello, Bob", "Hello, Ann\nhow are you?"])
        await expect(tab.log.locator(".said .speaker")).to_have_text(["Ann", "Bob"])
        await expect(tab.log.locator(".said time")).to_have_text([re.compile(r"^\d\d:\d\d$")] * 2)
        await expect(tab.log.locator(".waiting")).to_have_count(0)
    # A second tab of the same browser belongs to the same user. The user leaves with the last tab.
    async with bob.page.expect_popup() as popup:
        await bob.page.evaluate("open(location.href)")
    again = Tab(await popup.value)
    await expect(again.said("Hello, Bob")).to_be_visible()
    await bob.page.close()
    await again.say("still here")
    await expect(ann.said("still here")).to_be_visible()
    await ann.shows_people("Ann", "Bob")
    await expect(ann.note("Bob came in")).to_have_count(1)
    await expect(ann.note("Bob left")).to_have_count(0)
    await again.page.close()
    await expect(ann.note("Bob left")).to_have_count(1)
    await ann.shows_people("Ann")


async def test_the_typing_hint_comes_and_goes(demo: Demo, room: str) -> None:
    page = await demo.open_page(clock=True)
    ann = await demo.come_in(room, "Ann", page)
    bob = await demo.come_in(room, "Bob")
    await bob.text.press_sequentially("Well")
    await expect(ann.typing).to_have_text("Bob is typing…")
    await expect(bob.typing).to_have_text("")
    await bob.say("Well then")
    await expect(ann.said("Well then")).to_be_visible()
    await expect(ann.typing).to_have_text("")
    # Without a message the hint disappears after a while.
    await bob.text.press_sequentially("Hm")
    await expect(ann.typing).to_have_text("Bob is typing…")
    await ann.page.clock.fast_forward(5000)
    await expect(ann.typing).to_have_text("")


async def test_rooms_are_separate_and_switched_without_a_reload(demo: Demo, room: str) -> None:
    other = f"{room}, the other / one?"
    ann = await demo.come_in(room, "Ann")
    bob = await demo.come_in(room, "Bob")
    await ann.say("in the first room")
    await expect(bob.said("in the first room")).to_be_visible()
    await ann.page.evaluate("window.stays = true")
    await ann.page.get_by_label("Another room").fill(other)
    await ann.page.get_by_label("Another room").press("Enter")
    await expect(ann.page.get_by_role("heading", name=other)).to_be_visible()
    await expect(bob.note("Ann left")).to_have_count(1)
    await ann.shows_people("Ann")
    # The page's URL leads to the room.
    cat = Tab(await demo.open_page(ann.page.url))
    await cat.come_in("Cat")
    await ann.shows_people("Ann", "Cat")
    await cat.say("in the other room")
    await bob.say("meanwhile here")
    await expect(ann.said("in the other room")).to_be_visible()
    await expect(ann.said("meanwhile here")).to_have_count(0)
    # Back, by the browser's own button: the messages are still shown, and later ones too.
    await ann.page.go_back()
    await expect(ann.log.locator(".said .text")).to_have_text(["in the first room", "meanwhile here"])
    await expect(bob.said("in the other room")).to_have_count(0)
    link = ann.page.get_by_role("link", name=room, exact=True)
    await expect(link).to_have_attribute("aria-current", "page")
    assert await ann.page.evaluate("window.stays")


async def test_a_reload_keeps_the_name_and_the_last_messages(demo: Demo, room: str) -> None:
    ann = await demo.come_in(room, "Ann")
    await ann.say("before")
    await expect(ann.log.locator(".said:not(.waiting)")).to_have_count(1)
    await ann.page.reload()
    await expect(ann.said("before")).to_be_visible()
    await ann.shows_people("Ann")


async def test_html_is_shown_as_text(demo: Demo, room: str) -> None:
    name, text = "<img src=x onerror=a()>", "<script>alert(1)</script><b>&amp;</b>"
    room = f"{room}<i>"
    ann = await demo.come_in(room, "Ann")
    eve = await demo.come_in(room, name)
    await eve.text.press_sequentially(text)
    await expect(ann.typing).to_have_text(f"{name} is typing…")
    await eve.text.press("Enter")
    await expect(ann.note(f"{name} came in")).to_be_visible()
    await expect(ann.log.locator(".said .text")).to_have_text([text])
    await expect(ann.log.locator(".said .speaker")).to_have_text([name])
    await ann.shows_people(name, "Ann")
    await expect(ann.page.locator("img, main b b, main i, main script")).to_have_count(0)


async def test_a_refused_name_or_room_is_explained(demo: Demo, room: str, watched: Watched) -> None:
    tab = await demo.door(room)
    await tab.page.get_by_role("button", name="Come in").click()
    await expect(tab.page.get_by_role("alert")).to_have_text("Please enter your name.")
    watched.expects_errors = True
    # Invisible characters do not make a name.
    await tab.page.get_by_label("Your name").fill("\u202e\u200b")
    await tab.page.get_by_role("button", name="Come in").click()
    await expect(tab.page.get_by_label("Your name")).to_have_attribute("aria-invalid", "true")
    await expect(tab.page.get_by_label("Your name")).to_be_focused()
    await expect(tab.page.get_by_role("alert")).to_have_text("Please enter your name.")
    # "#" separates name and tag.
    await tab.page.get_by_label("Your name").fill("Ann #12345678")
    await tab.page.get_by_role("button", name="Come in").click()
    await expect(tab.page.get_by_role("alert")).to_have_text("Please choose a name without #.")
    await tab.page.get_by_label("Room", exact=True).fill(" ")
    await tab.page.get_by_label("Your name").fill("Ann")
    await tab.page.get_by_role("button", name="Come in").click()
    await expect(tab.page.get_by_role("alert")).to_have_text("Please enter the name of a room.")
    await tab.page.get_by_label("Room", exact=True).fill(room)
    await tab.come_in("Ann")
    await expect(tab.page.get_by_role("alert")).to_have_count(0)
    # In a room, too: a link may lead to an invalid room.
    await tab.page.evaluate("location.hash = 'x'.repeat(41)")
    await expect(tab.page.get_by_role("alert")).to_have_text("This should have at most 40 characters.")
    await expect(tab.page.get_by_label("Room", exact=True)).to_be_focused()
    await tab.page.get_by_label("Room", exact=True).fill(room)
    await tab.come_in("Ann")


async def test_an_empty_room_says_so_until_there_is_a_message(demo: Demo, room: str) -> None:
    ann = await demo.come_in(room, "Ann")
    hint = ann.log.get_by_text("No messages yet.")
    await expect(hint).to_be_visible()
    bob = await demo.come_in(room, "Bob")
    await expect(ann.note("Bob came in")).to_be_visible()
    await expect(hint).to_be_visible()
    await bob.say("hello")
    await expect(ann.said("hello")).to_be_visible()
    for tab in (ann, bob):
        await expect(tab.log.get_by_text("No messages yet.")).to_be_hidden()
    # Another room has its own hint, and this one keeps its message.
    await ann.page.get_by_label("Another room").fill(room + " two")
    await ann.page.get_by_label("Another room").press("Enter")
    await expect(hint).to_be_visible()
    await ann.page.go_back()
    await expect(ann.said("hello")).to_be_visible()
    await expect(hint).to_be_hidden()


async def test_the_lines_for_developers_are_only_at_the_entrance(demo: Demo, room: str) -> None:
    ann = await demo.door(room)
    lines = ann.page.get_by_role("contentinfo")
    await expect(lines).to_contain_text("lines of Python")
    await ann.come_in("Ann")
    await expect(lines).to_be_hidden()
    await ann.say("hello")
    await expect(ann.said("hello")).to_be_visible()
    await expect(lines).to_be_hidden()


@pytest.mark.parametrize("name", ["Ann", "ann", "An\u200bn", "\uff21nn"])
async def test_users_whose_names_look_alike_are_shown_with_tags(demo: Demo, room: str, name: str) -> None:
    ann = await demo.come_in(room, "Ann")
    await ann.say("I am Ann")
    await ann.shows_people("Ann")
    eve = await demo.come_in(room, name)
    await eve.say("So am I")
    shown = re.compile(r"^ann #[0-9a-f]{8}$", re.IGNORECASE)
    for tab in (ann, eve):
        # Also with the messages shown before.
        await expect(tab.log.locator(".said .speaker")).to_have_text([shown, shown])
        first, second = await tab.log.locator(".said .speaker").all_inner_texts()
        assert first[-8:] != second[-8:]
        await expect(tab.people).to_have_count(2)
        await expect(tab.people.get_by_text(shown)).to_have_count(2)
        await expect(tab.people.get_by_text("you", exact=True)).to_have_count(1)
    # Each has sent one message.
    for tab in (ann, eve):
        await expect(tab.log.locator(".said.mine")).to_have_count(1)


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("See https://example.com/a?b=c&d#e.", ["https://example.com/a?b=c&d#e"]),
        ("http://a.example, HTTPS://b.example! (http://c.example)", None),
        ("(https://example.com/wiki/Hub_(network)).", ["https://example.com/wiki/Hub_(network)"]),
        ('"https://example.com/x" <https://example.com/y>?', None),
        ("https://example.com/\nhttps://example.com/ä", None),
        ("[https://example.com/a[1]] {https://example.com/b})]", None),
        ("javascript:alert(1) data:text/html,x ftp://example.com www.example.com xhttp://a https://", []),
        ("https://example.com/<img src=x onerror=alert(1)>", ["https://example.com/"]),
        ('https://example.com/"onclick="alert(1)', ["https://example.com/"]),
        ("https://example.com/\u202emoc.elgoog", ["https://example.com/"]),
    ],
)
async def test_addresses_in_messages_are_links(
    demo: Demo, room: str, text: str, links: list[str] | None
) -> None:
    if links is None:
        links = re.findall(r"(?i)https?://[a-z.]+[/\wä]*(?:\[1\])?", text)
    ann = await demo.come_in(room, "Ann")
    bob = await demo.come_in(room, "Bob")
    await ann.say(text)
    for tab in (ann, bob):
        await expect(tab.log.locator(".said .text")).to_have_text([text], use_inner_text=True)
        anchors = tab.log.locator(".said a")
        await expect(anchors).to_have_text(links)
        for anchor in await anchors.all():
            await expect(anchor).to_have_attribute("href", await anchor.inner_text())
            await expect(anchor).to_have_attribute("rel", "noopener noreferrer nofollow")
            await expect(anchor).to_have_attribute("target", "_blank")
            # The focus is visible on both colours of bubbles.
            await anchor.focus()
            await tab.page.keyboard.press("Shift+Tab")
            await tab.page.keyboard.press("Tab")
            await expect(anchor).to_be_focused()
            ink = await anchor.evaluate("element => getComputedStyle(element).color")
            await expect(anchor).to_have_css("outline", f"{ink} solid 2px")
        await expect(tab.log.locator(".said .text > :not(a)")).to_have_count(0)


async def test_messages_beyond_the_rate_limit_wait_and_keep_their_order(demo: Demo, room: str) -> None:
    page = await demo.open_page()
    refused: set[str] = set()

    def pass_on(route: WebSocketRoute) -> None:
        """Refuse each message once, as the server does beyond the rate limit."""
        real = route.connect_to_server()

        def on_message(text: str | bytes) -> None:
            message = json.loads(text)
            if message["type"] != "say" or message["id"] in refused:
                real.send(text)
                return
            refused.add(message["id"])
            route.send(json.dumps({"type": "too_fast", "id": message["id"], "seconds": 0.05, "message": ""}))

        route.on_message(on_message)

    await page.route_web_socket(re.compile("/chat"), pass_on)
    ann = await demo.come_in(room, "Ann", page)
    bob = await demo.come_in(room, "Bob")
    texts = [f"message {n}" for n in range(10)]
    for text in texts:
        await ann.say(text)
    for tab in (ann, bob):
        await expect(tab.log.locator(".said:not(.waiting) .text")).to_have_text(texts)
    await expect(ann.log.locator(".waiting, .refused")).to_have_count(0)
    await expect(ann.status).to_have_text("Connected")
    assert len(refused) == len(texts)


async def test_a_message_beyond_the_rate_limit_is_marked_while_it_waits(demo: Demo, room: str) -> None:
    page = await demo.open_page()
    sent: list[str] = []

    def refuse(route: WebSocketRoute) -> None:
        real = route.connect_to_server()

        def on_message(text: str | bytes) -> None:
            id_ = json.loads(text).get("id")
            if id_ is None:
                real.send(text)
            else:
                sent.append(id_)
                route.send(json.dumps({"type": "too_fast", "id": id_, "seconds": 3600, "message": ""}))

        route.on_message(on_message)

    await page.route_web_socket(re.compile("/chat"), refuse)
    ann = await demo.come_in(room, "Ann", page)
    for text in ("one", "two"):
        await ann.say(text)
        await expect(ann.said(text)).to_contain_text("too many at once, will be sent in a moment")
    await expect(ann.status).to_have_text("Connected")
    # The pause applies to all messages.
    assert len(sent) == 1


async def test_an_answer_that_comes_late_does_not_change_the_order(demo: Demo, room: str) -> None:
    """Another worker's message may overtake the one that this page waits for."""
    page = await demo.open_page()
    late: list[str | bytes] = []
    routes: list[WebSocketRoute] = []

    def hold(route: WebSocketRoute) -> None:
        server = route.connect_to_server()
        routes.append(route)

        def pass_on(message: str | bytes) -> None:
            if any(word in str(message) for word in ("earlier", '"accepted"')):
                late.append(message)
            else:
                route.send(message)

        server.on_message(pass_on)

    await page.route_web_socket(re.compile(r"/chat\?"), hold)
    ann = await demo.come_in(room, "Ann", page)
    bob = await demo.come_in(room, "Bob")
    await ann.say("earlier")
    await expect(bob.said("earlier")).to_be_visible()
    await bob.say("later")
    await expect(ann.said("later")).to_be_visible()
    for message in late:
        routes[-1].send(message)
    await expect(ann.log.locator(".waiting")).to_have_count(0)
    await expect(ann.log.locator(".said .text")).to_have_text(["earlier", "later"])


# Losing the connection


async def test_pages_reconnect_after_the_server_was_killed(
    open_page: OpenPage, tmp_path: Path, room: str, watched: Watched
) -> None:
    watched.expects_errors = True
    port = free_port()
    async with serve(DEMO, tmp_path / "log", port=port) as server:
        demo = Demo(open_page, f"{server.http}/")
        ann = await demo.come_in(room, "Ann")
        bob = await demo.come_in(room, "Bob")
        await ann.say("before")
        await expect(bob.said("before")).to_be_visible()
        await bob.text.fill("half a sen")
        await server.stop(signal.SIGKILL)
        for tab in (ann, bob):
            banner = tab.page.get_by_text(re.compile(r"^Connection lost\. Trying again in \d+ s…$"))
            await expect(banner).to_be_visible()
            await expect(tab.status).to_have_text("Not connected")
        await ann.say("while it was away")
        await expect(ann.said("while it was away")).to_contain_text("will be sent when connected")
        await expect(bob.text).to_have_value("half a sen")
    async with serve(DEMO, tmp_path / "log", port=port):
        for tab in (ann, bob):
            await expect(tab.status).to_have_text("Connected")
            await expect(tab.page.get_by_role("button", name="Try now")).to_be_hidden()
        for tab in (ann, bob):
            await tab.shows_people("Ann", "Bob")
            await expect(tab.log.locator(".said .text")).to_have_text(["before", "while it was away"])
        await expect(ann.log.locator(".waiting")).to_have_count(0)
        await expect(bob.text).to_have_value("half a sen")
        await bob.text.press_sequentially("tence")
        await bob.text.press("Enter")
        await expect(ann.said("half a sentence")).to_be_visible()


async def test_a_server_that_has_lost_its_history_is_noticed(
    open_page: OpenPage, tmp_path: Path, room: str, watched: Watched
) -> None:
    watched.expects_errors = True
    port = free_port()
    async with serve(DEMO, tmp_path / "log", port=port) as server:
        demo = Demo(open_page, f"{server.http}/")
        ann = await demo.come_in(room, "Ann")
        await ann.say("before")
        await expect(ann.log.locator(".said:not(.waiting)")).to_have_count(1)
        await server.stop(signal.SIGKILL)
    async with serve(DEMO, tmp_path / "log", port=port):
        await expect(ann.log.get_by_text("Messages may be missing.")).to_have_count(1)
        await expect(ann.status).to_have_text("Connected")
        await ann.say("after")
        await expect(ann.log.locator(".said:not(.waiting)")).to_have_count(2)


async def test_killed_workers_lose_no_message(
    open_page: OpenPage, tmp_path: Path, room: str, watched: Watched
) -> None:
    watched.expects_errors = True
    command = (
        "hubbub",
        "demo",
        "--port",
        "{port}",
        "--workers",
        "2",
        "--url",
        f"sqlite:///{tmp_path}/demo.db",
    )
    async with serve(DEMO, tmp_path / "log", command=command) as server:
        demo = Demo(open_page, f"{server.http}/")
        tabs = [await demo.come_in(room, name) for name in ("Ann", "Bob", "Cat")]
        for tab in tabs:
            await tab.shows_people("Ann", "Bob", "Cat")
        said: list[str] = []
        for tab in tabs:
            served_by = await tab.status.get_attribute("title")
            assert served_by is not None
            pid = int(served_by.rpartition(" ")[2])
            # Its clients reconnect, and the others stay connected.
            os.kill(pid, signal.SIGKILL)
            for other in tabs:
                said.append(f"message {len(said)}")
                await other.say(said[-1])
            # It may have served other pages too, which show its id until they have reconnected.
            for other in tabs:
                await expect(other.status).not_to_have_attribute("title", served_by)
                await expect(other.status).to_have_text("Connected")
        for tab in tabs:
            await expect(tab.log.locator(".waiting")).to_have_count(0)
            await expect(tab.log.locator(".said")).to_have_count(len(said))
            await tab.shows_people("Ann", "Bob", "Cat")
        shown = [await tab.log.locator(".said .text").all_inner_texts() for tab in tabs]
        assert sorted(shown[0]) == sorted(said)
        assert shown[0] == shown[1] == shown[2]
        await expect(tabs[0].log.get_by_text("Messages may be missing.")).to_have_count(0)


@pytest.mark.parametrize("trigger", ["button", "online", "visibilitychange"])
async def test_a_page_reconnects_at_once_on_demand(demo: Demo, room: str, trigger: str) -> None:
    page = await demo.open_page(clock=True)
    routes: list[WebSocketRoute] = []

    def pass_on(route: WebSocketRoute) -> None:
        route.connect_to_server()
        routes.append(route)

    await page.route_web_socket(re.compile("/chat"), pass_on)
    ann = await demo.come_in(room, "Ann", page)
    # The clock is paused, so the page does not reconnect by itself.
    await page.clock.pause_at(await page.evaluate("Date.now() + 60000"))
    await routes[0].close()
    await expect(ann.status).to_have_text("Not connected")
    if trigger == "button":
        await page.get_by_role("button", name="Try now").press("Enter")
        # The button is hidden, and the focus moves to the text.
        await expect(ann.text).to_be_focused()
    else:
        target = "window" if trigger == "online" else "document"
        await page.evaluate(f"{target}.dispatchEvent(new Event('{trigger}'))")
    await expect(ann.status).to_have_text("Connected")


async def test_a_connection_that_is_silently_dead_is_detected(demo: Demo, room: str) -> None:
    """All messages of a page are lost without an error, as in a network failure."""
    page = await demo.open_page(clock=True)
    silent = True

    async def pass_on(route: WebSocketRoute) -> None:
        real = route.connect_to_server()
        route.on_message(lambda message: None if silent else real.send(message))

    await page.route_web_socket(re.compile("/chat"), pass_on)
    ann = await demo.come_in(room, "Ann", page)
    bob = await demo.come_in(room, "Bob")
    await ann.say("does this arrive?")
    await expect(ann.said("does this arrive?")).to_contain_text("sending…")
    silent = False
    await page.clock.fast_forward(9000)
    await expect(ann.said("does this arrive?")).to_contain_text("will be sent when connected")
    await page.clock.fast_forward(2000)
    await expect(ann.status).to_have_text("Connected")
    await expect(ann.log.locator(".said:not(.waiting)")).to_have_count(1)
    await expect(bob.said("does this arrive?")).to_have_count(1)


async def test_a_message_that_the_server_refuses_is_marked(demo: Demo, room: str) -> None:
    ann = await demo.come_in(room, "Ann")
    await ann.text.evaluate("element => element.removeAttribute('maxlength')")
    await ann.say("x" * 2001)
    await expect(ann.log.locator(".said")).to_contain_text("refused by the server")
    await ann.say("short")
    await expect(ann.log.locator(".said:not(.refused):not(.waiting)")).to_have_count(1)


async def test_a_proxy_that_blocks_websockets_is_reported(demo: Demo, room: str) -> None:
    page = await demo.open_page()
    # A WebSocket that closes before it opens.
    await page.add_init_script(
        "WebSocket = class { constructor() { setTimeout(() => this.onclose()) } close() {} }"
    )
    await demo.door(room, page)
    await page.get_by_label("Your name").fill("Ann")
    await page.get_by_role("button", name="Come in").click()
    banner = page.get_by_text(re.compile("WebSocket connections to it are blocked. Trying again in"))
    await expect(banner).to_be_visible()


# On a phone, by keyboard


@pytest.mark.parametrize("window", [320, 1200])
async def test_dots_and_faces_are_round(demo: Demo, room: str, window: int) -> None:
    """Also beside a long name."""
    room = (room + "w" * 40)[:40]
    ann = await demo.come_in(room, "W" * 24, viewport={"width": window, "height": 740})
    await ann.say("hello")
    await expect(ann.log.locator(".said:not(.waiting)")).to_have_count(1)
    more = ann.page.locator("#more")
    if await more.is_visible():
        await more.click()
    sizes = await ann.page.evaluate(
        """() => ["#state", "#people .face", ".said .face"].flatMap((selector) =>
            [...document.querySelectorAll(selector)].flatMap((element) =>
                [null, "::before", "::after"].map((part) => getComputedStyle(element, part))
                    .filter(({ borderRadius, display }) => borderRadius === "50%" && display !== "none")
                    .map(({ width, height }) => [width, height])))"""
    )
    assert len(sizes) >= 3
    for width, height in sizes:
        assert width == height
        # A fraction of a pixel is rounded in each direction.
        assert float(width.removesuffix("px")).is_integer()


async def test_a_phone_scrolls_in_one_direction_only(demo: Demo, room: str) -> None:
    phone = {"width": 360, "height": 740}
    room = (room + "w" * 40)[:40]
    name = "W" * 24
    ann = await demo.door(room, viewport=phone, has_touch=True, is_mobile=True)

    async def fits() -> None:
        rights = "[...document.querySelectorAll('body *')].map(e => e.getBoundingClientRect().right)"
        widths = "[document.documentElement, document.querySelector('#log')].map(e => e.scrollWidth)"
        assert max(await ann.page.evaluate(rights) + await ann.page.evaluate(widths)) <= phone["width"]

    await fits()
    await ann.come_in(name)
    bob = await demo.come_in(room, "Bob")
    await bob.say("x" * 500)
    await ann.say("y" * 500)
    await expect(ann.log.locator(".said:not(.waiting)")).to_have_count(2)
    await fits()
    more = ann.page.get_by_role("button", name="2 here")
    await expect(ann.page.get_by_role("region", name="Here now")).to_be_hidden()
    await more.tap()
    await ann.shows_people("Bob", name)
    await fits()
    await more.tap()
    await expect(ann.text).to_be_visible()


#: Returns the name of the focused element, and the style of its outline.
FOCUSED = """() => {
  const element = document.activeElement
  if (element === document.body) return ["", "body"]
  const label = element.ariaLabel ?? element.labels?.[0]?.textContent ?? element.textContent
  return [label.trim(), getComputedStyle(element).outlineStyle]
}"""


async def test_everything_works_by_keyboard(demo: Demo, room: str) -> None:
    bob = await demo.come_in(room, "Bob")
    ann = await demo.door(room)
    keyboard = ann.page.keyboard

    async def tab_to(name: str, *, key: str = "Tab") -> None:
        for _ in range(30):
            label, outline = await ann.page.evaluate(FOCUSED)
            assert outline != "none", f"The focus on {label!r} is invisible."
            if label == name:
                return
            await keyboard.press(key)
        raise AssertionError(f"Could not get to {name!r} by {key}.")

    await tab_to("Your name")
    await keyboard.type("Ann")
    await keyboard.press("Enter")
    await expect(ann.text).to_be_focused()
    await expect(ann.status).to_have_text("Connected")
    await keyboard.type("one line")
    await keyboard.press("Shift+Enter")
    await keyboard.type("and another")
    await keyboard.press("Enter")
    await expect(bob.said("one line\nand another")).to_be_visible()
    await expect(ann.text).to_be_focused()
    await keyboard.type("by the button")
    await tab_to("Send")
    await keyboard.press("Enter")
    await expect(bob.said("by the button")).to_be_visible()
    await tab_to("Messages", key="Shift+Tab")
    await tab_to("Another room", key="Shift+Tab")
    await keyboard.type(room + " two")
    await keyboard.press("Enter")
    await expect(ann.page.get_by_role("heading", name=room + " two")).to_be_visible()
    await expect(ann.text).to_be_focused()
    await tab_to(room, key="Shift+Tab")
    await keyboard.press("Enter")
    await expect(ann.said("by the button")).to_be_visible()
    await tab_to("Change", key="Shift+Tab")
    await keyboard.press("Enter")
    await expect(ann.page.get_by_label("Your name")).to_be_focused()
    await expect(bob.note("Ann left")).to_have_count(2)


async def test_the_panel_of_a_phone_works_by_keyboard(demo: Demo, room: str) -> None:
    ann = await demo.come_in(room, "Ann", viewport={"width": 360, "height": 740})
    more = ann.page.get_by_role("button", name="1 here")
    await more.press("Enter")
    await expect(more).to_have_attribute("aria-expanded", "true")
    await expect(ann.page.get_by_role("link", name=room)).to_be_focused()
    await ann.page.keyboard.press("Escape")
    await expect(more).to_be_focused()
    await expect(more).to_have_attribute("aria-expanded", "false")
    await expect(ann.page.get_by_role("link", name=room)).to_be_hidden()


async def distance(tab: Tab) -> int:
    """Return the number of pixels below the visible part of the log."""
    rest: int = await tab.log.evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight")
    return rest


async def test_the_log_follows_new_messages_unless_the_user_has_scrolled_up(demo: Demo, room: str) -> None:
    ann = await demo.come_in(room, "Ann")
    bob = await demo.come_in(room, "Bob")
    for n in range(4):
        await bob.say("\n".join(map(str, range(15))) + f"\nmessage {n}")
    last = ann.log.get_by_text("message 3")
    await expect(last).to_be_visible()
    assert await distance(ann) == 0
    await ann.log.focus()
    await ann.page.keyboard.press("Home")
    await ann.page.wait_for_function("document.querySelector('#log').scrollTop === 0")
    await bob.say("news")
    down = ann.page.get_by_role("button", name="New messages")
    await expect(down).to_be_visible()
    await expect(ann.said("news")).not_to_be_in_viewport()
    await down.click()
    assert await distance(ann) == 0
    await expect(ann.said("news")).to_be_in_viewport()
    await expect(down).to_be_hidden()


# The examples


async def open_example(open_page: OpenPage, server: Server, name: str) -> Page:
    page = await open_page(f"{server.http}/examples/{name}/")
    await expect(page.get_by_role("status")).to_be_visible()
    return page


async def talk(page: Page, text: str, *answers: str) -> None:
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    await page.keyboard.type(text)
    await page.keyboard.press("Enter")
    for answer in answers:
        await expect(page.get_by_role("log").get_by_text(answer, exact=True)).to_be_visible()


async def test_echo(open_page: OpenPage, server: Server) -> None:
    page = await open_example(open_page, server, "echo")
    await expect(page.get_by_role("status")).to_have_text("Connected.")
    await talk(page, "<b>hello</b>", "The server heard: <b>hello</b>")


async def test_history(open_page: OpenPage, tmp_path: Path, watched: Watched) -> None:
    """The page of docs/history.md receives the messages it missed when it reconnects."""
    watched.expects_errors = True
    async with serve("history:app", tmp_path / "log", probe="/docs") as server:
        pages = [await open_page(f"{server.http}/rooms/1") for _ in range(2)]
        routes: list[WebSocketRoute] = []

        def pass_on(route: WebSocketRoute) -> None:
            route.connect_to_server()
            routes.append(route)

        await pages[1].route_web_socket(re.compile("/rooms/1"), pass_on)
        await pages[1].reload()
        for page in pages:
            await expect(page.get_by_role("status")).to_have_text("Connected.")
        await talk(pages[0], "one", "one")
        await expect(pages[1].get_by_role("listitem")).to_have_text(["one"])
        await routes[-1].close()
        await talk(pages[0], "two", "two")
        await expect(pages[1].get_by_role("listitem")).to_have_text(["one", "two"])
        assert "since=1" in routes[-1].url


async def test_items(open_page: OpenPage, server: Server, watched: Watched) -> None:
    watched.expects_errors = True
    page = await open_example(open_page, server, "items")
    log, status = page.get_by_role("log"), page.get_by_role("status")
    proof, connect = page.get_by_label("Come in"), page.get_by_role("button", name="Connect")
    question = page.get_by_label("Question")

    async def ask(answer: str) -> None:
        await connect.click()
        await expect(status).to_have_text("Connected.")
        await question.fill("how big?")
        await question.press("Enter")
        await expect(log.get_by_role("listitem").first).to_have_text(answer)

    await ask("About lamp, asked with the cookie demo: how big?")
    await page.get_by_label("Amount, if you like").fill("3")
    await proof.select_option("with a token")
    await ask("About 3 x lamp, asked with the token open-sesame: how big?")
    await proof.select_option("with neither")
    await connect.click()
    await expect(status).to_contain_text("The server refused.")


@pytest.mark.parametrize("name", ["manager", "chat"])
async def test_chat_with_and_without_the_hub(open_page: OpenPage, server: Server, name: str) -> None:
    pages = [await open_example(open_page, server, name) for _ in range(2)]
    ids = []
    for page in pages:
        await expect(page.get_by_role("status")).to_have_text(re.compile(r"You are client #\d+\."))
        ids.append(re.sub(r"\D", "", await page.get_by_role("status").inner_text()))
    await talk(pages[1], "hi", "You wrote: hi", f"Client #{ids[1]} says: hi")
    await talk(pages[0], "<i>", "You wrote: <i>", f"Client #{ids[0]} says: <i>")
    await expect(pages[1].get_by_role("log")).to_contain_text(f"Client #{ids[0]} says: <i>")
    await pages[0].close()
    await expect(pages[1].get_by_role("log")).to_contain_text(f"Client #{ids[0]} left the chat")


async def test_the_chat_reconnects_after_the_server_was_killed(
    open_page: OpenPage, tmp_path: Path, watched: Watched
) -> None:
    watched.expects_errors = True
    port = free_port()
    async with serve("chat:app", tmp_path / "log", port=port) as server:
        page = await open_page(server.http)
        text, status = page.get_by_role("textbox"), page.get_by_role("status")
        await expect(status).to_contain_text("You are client")
        await server.stop(signal.SIGKILL)
        await expect(status).to_have_text("Connection lost. Trying again…")
        await text.fill("kept")
        await text.press("Enter")
    async with serve("chat:app", tmp_path / "log", port=port):
        await expect(status).to_contain_text("You are client")
        await text.press("Enter")
        await expect(page.get_by_role("log")).to_contain_text("You wrote: kept")
