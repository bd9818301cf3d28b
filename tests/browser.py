"""A real browser for tests and scripts: Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Error, async_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

HOW_TO_INSTALL = (
    "No Chromium was found. Install it with the system's package manager or with 'playwright install "
    "chromium', or set HUBBUB_TEST_CHROMIUM to the path of the program."
)


class NoChromium(RuntimeError):
    """No Chromium was found on this machine."""

    def __init__(self) -> None:
        super().__init__(HOW_TO_INSTALL)


def find_chromium() -> str | None:
    """Return the Chromium to use, or ``None`` for Playwright's own."""
    if named := os.environ.get("HUBBUB_TEST_CHROMIUM"):
        return named
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@asynccontextmanager
async def launch() -> AsyncIterator[Browser]:
    """Run Chromium without a window.

    :raises NoChromium: no Chromium was found.
    """
    async with async_playwright() as playwright:
        try:
            browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        except Error as exc:
            # Playwright has no class of its own for this error.
            if "executable doesn't exist" not in str(exc).lower():
                raise
            raise NoChromium from exc
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run Chromium for a test, which is skipped if there is no Chromium, or fails in a CI."""
    try:
        async with launch() as browser:
            yield browser
    except NoChromium as exc:
        if os.environ.get("CI"):
            pytest.fail(str(exc))
        pytest.skip(str(exc))
