"""The documentation's pictures of the page, taken from a running server.

python -m tests.browser.screenshots http://127.0.0.1:8080 --user u0007 --out docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import CHROMIUM, FLAGS

LARGEST = 300_000
"""Bytes of a picture."""


def main() -> None:
    """Write ``page-light.png``, ``page-dark.png`` and ``health.png``; a picture that is too large is an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url", help="address of a recommender")
    parser.add_argument("--user", required=True, help="whom to explore for")
    parser.add_argument("--preference", default="")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wish = {"preference": options.preference} if options.preference else {}
    query = urlencode({"user": options.user, "k": 10, "deadline": 5000, **wish})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for scheme in ("light", "dark"):
            page = _opened(browser, f"{options.url}/#explore?{query}", scheme, "#verdict:not([hidden])")
            if scheme == "dark" and page.locator(".ranking summary:not(:has(.same))").count():
                page.locator(".ranking summary:not(:has(.same))").first.click()
            _save(page, options.out / f"page-{scheme}.png")
        page = _opened(browser, f"{options.url}/#health", "light", "#health .card")
        _save(page, options.out / "health.png", whole=True)
        browser.close()


def _opened(browser: Browser, address: str, scheme: str, shown: str) -> Page:
    page = browser.new_page(
        viewport={"width": 1440, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page.goto(address)
    page.wait_for_selector(shown)
    page.wait_for_timeout(500)
    return page


def _save(page: Page, file: Path, *, whole: bool = False) -> None:
    page.screenshot(path=file, full_page=whole)
    size = file.stat().st_size
    print(f"{file}: {size:,} bytes")
    if size > LARGEST:
        raise SystemExit(f"{file} has {size:,} bytes, more than {LARGEST:,}; choose another user or a smaller view")


if __name__ == "__main__":
    main()
