"""A real browser without a window, and pages that note everything they should not do."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
OpenPage = Callable[..., Awaitable[Page]]


@dataclass
class Misdeeds:
    """What no page may do: ask others, or complain on its console."""

    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )


@pytest.fixture
def misdeeds() -> Misdeeds:
    return Misdeeds()


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        message = "no chromium is installed; scripts/setup does that where it may"
        if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"):
            pytest.fail(message)
        pytest.skip(message)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to have one as root
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=sandbox)
        yield browser
        await browser.close()


@pytest.fixture
async def open_page(browser: Browser, misdeeds: Misdeeds) -> AsyncIterator[OpenPage]:
    """Open a page of the dashboard and wait until it is live: `await open_page(url, color_scheme="dark")`."""
    async with AsyncExitStack() as stack:

        async def open_page(url: str, *, is_live: bool = True, **options: Any) -> Page:
            context = await browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options})
            stack.push_async_callback(context.close)
            page = await context.new_page()
            page.set_default_timeout(30_000)
            misdeeds.watch(page)
            await page.goto(url)
            if is_live:
                await page.get_by_text("live", exact=True).wait_for()
            return page

        yield open_page


@pytest.fixture
def screenshot() -> Callable[[Page, str], Awaitable[None]]:
    """Keep a picture for people: `await screenshot(page, "dark")`."""

    async def take(page: Page, name: str) -> None:
        await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    return take
