"""A real browser's EventSource: what it shows of each event, and how it comes back."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from playwright.async_api import Page

from tests.browser import chromium
from tests.clients import DEADLINE, http_client
from tests.uvicorn_process import ROOT, Server, free_port, serve

APP = "tests.apps.events:app"
TABS = 10

#: In milliseconds, as Playwright counts.
TIMEOUT = DEADLINE * 1000


async def publish(server: Server, channel: str, body: str | bytes) -> str:
    kind = "text" if isinstance(body, str) else "binary"
    async with http_client() as http:
        url = f"{server.http}/publish/{channel}"
        answer = await http.post(url, content=body, headers={"kind": kind})
        found: str = answer.json()
        return found


async def events(page: Page, count: int) -> list[Any]:
    """Wait for ``count`` events of the page."""
    await page.wait_for_function("count => events.length >= count", arg=count, timeout=TIMEOUT)
    found: list[Any] = await page.evaluate("events")
    assert len(found) == count
    return found


async def test_ten_tabs_show_every_event_once_through_a_kill_and_a_drain(tmp_path: Path) -> None:
    port = free_port()
    options: dict[str, Any] = {
        "cwd": ROOT,
        "port": port,
        "command": "hubbub run",
        "env": {"HUBBUB_URL": f"sqlite:///{tmp_path / 'hub.db'}"},
    }
    async with chromium() as browser, AsyncExitStack() as stack:
        pages: list[Page] = []
        async with serve(APP, tmp_path / "1.log", **options) as server:
            for _ in range(TABS):
                # In one window, a browser opens six connections to a host that speaks HTTP/1.1.
                context = await stack.enter_async_context(await browser.new_context())
                page = await context.new_page()
                await page.goto(f"{server.http}/?channel=room:1")
                pages.append(page)
            openings = [(await events(page, 1))[0] for page in pages]
            text = await publish(server, "room:1", "one\ntwo\r\nthree\rfour: 🙂")
            binary = await publish(server, "room:1", b"\x00\xff")
            expected: list[Any] = [
                ["message", text, "one\ntwo\nthree\nfour: 🙂"],
                ["binary", binary, "AP8="],
            ]
            for page, opening in zip(pages, openings, strict=True):
                start = f"0:{text.partition(':')[2]}"
                assert opening == ["subscribed", start, f'{{"type":"subscribed","id":"{start}"}}']
                assert (await events(page, 3))[1:] == expected
            await server.stop(signal.SIGKILL)
        last = binary
        # Killed before, and then asked to stop: the browser comes back, and has missed nothing.
        for log in ("2.log", "3.log"):
            async with serve(APP, tmp_path / log, **options) as server:
                missed = await publish(server, "room:1", f"missed {log}")
                for page in pages:
                    found = await events(page, len(expected) + 3)
                    assert found[1:] == [
                        *expected,
                        ["subscribed", last, f'{{"type":"subscribed","id":"{last}","recovered":true}}'],
                        ["message", missed, f"missed {log}"],
                    ]
                expected = found[1:]
                last = missed
                if log == "2.log":
                    assert await server.stop() == 0


async def test_a_page_learns_why_its_stream_has_ended_and_stays_away(tmp_path: Path) -> None:
    async with chromium() as browser, serve(APP, tmp_path / "log", cwd=ROOT) as server:
        page = await browser.new_page()
        await page.goto(f"{server.http}/?channel=room:1%3Fuser=ann")
        await events(page, 1)
        await page.evaluate("source.addEventListener('close', () => source.close())")
        async with http_client() as http:
            await http.post(f"{server.http}/disconnect/ann")
        name, _, data = (await events(page, 2))[1]
        assert (name, data) == ("close", '{"type":"close","code":3503,"reason":"disconnected"}')
        assert await page.evaluate("source.readyState") == 2


async def test_an_event_source_gives_up_on_a_refusal(tmp_path: Path) -> None:
    async with chromium() as browser, serve(APP, tmp_path / "log", cwd=ROOT) as server:
        page = await browser.new_page()
        await page.goto(f"{server.http}/?channel=undeclared")
        await page.wait_for_function("source.readyState === EventSource.CLOSED", timeout=TIMEOUT)
        assert await page.evaluate("events") == []
