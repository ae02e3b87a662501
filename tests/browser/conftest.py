"""A headless Chromium, the page served over HTTP, and what must never happen on it: errors, foreign requests."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.unit.serving.pages import Pages

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PATIENCE_MS = 120_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; none is downloaded. Playwright keeps an event loop running, so it ends with its module."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine; install the package chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


class Site:
    """The page at ``url``; ``pages`` holds what a test may turn."""

    def __init__(self, pages: Pages, url: str) -> None:
        self.pages, self.url = pages, url


@contextmanager
def serving(pages: Pages) -> Iterator[Site]:
    """Serve in a thread of this process, on a free port."""
    server = uvicorn.Server(uvicorn.Config(pages.app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield Site(pages, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    finally:
        pages.exploring.held = False
        server.should_exit = True
        thread.join(20)
        pages.recommender.close()


@pytest.fixture
def site() -> Iterator[Site]:
    """The page over the scripted loop."""
    with serving(Pages(deadline_ms=20_000)) as found:
        yield found


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """``visit(address, **context)``: a page in a context of its own; it must not complain or ask another origin.

    ``allowed``: a part of the complaints that a test provokes.
    """
    closing: list[Callable[[], None]] = []

    def open_page(address: str, *, allowed: str = "", **context: Any) -> Page:
        options = {"viewport": {"width": 1400, "height": 900}, **context}
        session = browser.new_context(**options)
        page = session.new_page()
        page.set_default_timeout(PATIENCE_MS)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        origin = "/".join(address.split("/")[:3])
        foreign: list[str] = []
        page.on("request", lambda asked: None if asked.url.startswith((origin, "data:")) else foreign.append(asked.url))

        def close() -> None:
            session.close()
            assert foreign == []
            assert [one for one in complaints if not allowed or allowed not in one] == []

        closing.append(close)
        page.goto(address)
        page.wait_for_selector("#served :text('bundle')", state="attached")
        return page

    yield open_page
    for close in closing:
        close()
