"""A stack with an inspector, one browser, and pages logged in with the roles that a test asks for."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from chat_streams.runtime.tokens import mint
from docker.local.layout import ROOT, base_environment
from docker.local.part import Running
from docker.local.parts import Service
from docker.local.probes import WITHIN_S
from docker.local.temporary_stack import Stack, aws_of

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SHOTS = ROOT / "docs" / "images"
DESK = {"width": 1200, "height": 800}
# Chromium logs one of these when it refuses a script: by the policy, or a module that is missing or of another type.
REFUSED = re.compile("Content Security|module script|/static/")
PHONE = {"width": 390, "height": 800}

Open = Callable[..., Awaitable[Page]]

expect.set_options(timeout=WITHIN_S * 1000)


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Start everything; the environment's own settings for Connect Chat and AWS are removed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - base_environment().keys() | {n for n in os.environ if n.startswith("CHAT_")}:
            patch.delenv(name)
        async with Stack(tmp_path_factory.mktemp("stack"), patient=True) as stack:
            with aws_of(stack.layout):
                yield stack


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def inspector(stack: Stack) -> Running:
    """Start the inspector beside the stack."""
    return await stack.start(Service(stack.layout, "inspector"))


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Start Debian's Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture
async def visit(stack: Stack, inspector: Running, browser: Browser) -> AsyncIterator[Open]:
    """Open a page of the inspector as a user with roles, ``viewer`` by default; a script error fails the test."""
    errors: list[str] = []
    contexts = []

    async def visit(path: str, *roles: str, phone: bool = False, dark: bool = True) -> Page:
        context = await browser.new_context(
            viewport=PHONE if phone else DESK,  # type: ignore[arg-type]
            color_scheme="dark" if dark else "light",
            base_url=inspector.part.url,
        )
        contexts.append(context)
        page = await context.new_page()
        page.set_default_timeout(WITHIN_S * 1000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if REFUSED.search(message.text) else None)
        await page.goto(path)
        await page.get_by_label("Token").fill(mint(stack.settings.jwt_key(), "eve", 600, roles or ["viewer"]))
        await page.get_by_role("button", name="Open the inspector").click()
        await page.wait_for_url(lambda url: "/login" not in url)
        return page

    yield visit
    for context in contexts:
        await context.close()
    assert errors == []


async def shoot(page: Page, name: str) -> None:
    """Save a screenshot of a page for the docs, if SCREENSHOTS=1 is set."""
    target = SHOTS / f"{name}.png" if os.environ.get("SCREENSHOTS") else Path(os.devnull)
    picture = await page.screenshot(full_page=True)
    assert len(picture) > 1000
    if target != Path(os.devnull):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture)
