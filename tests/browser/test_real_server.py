"""The page of `deeprec serve recommender` itself: KServe's application, a feature store, a tiny policy that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PATIENCE_MS
from tests.integration.parts import make_run
from tests.integration.servers import ServerProcess, deeprec, started
from tests.integration.taught import teach

DEADLINE = PATIENCE_MS


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    place = tmp_path_factory.mktemp("page")
    run = make_run(place / "run")
    bundle = teach(run, place / "taught") / "bundle"
    features = ("--features", run / "features")
    patient = ("--set", f"serving.max_deadline_ms={DEADLINE}", "--deadline-ms", str(DEADLINE))
    command = deeprec("serve", "recommender", bundle, *features, "--port", "0", *patient)
    with started(command, place / "log") as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.printed


def test_a_user_of_the_feature_store_is_explored_live(server: ServerProcess, visit: Callable[..., Page]) -> None:
    page = visit(server.url)
    page.get_by_label("User id").fill("u0")
    option = page.locator("#user-options > li").nth(1)
    user = option.locator(".option-label").text_content()
    option.click()
    expect(page.locator("#had li")).to_have_count(5)
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(page.locator("#verdict")).to_contain_text("The policy answered")
    expect(page.locator(".turn")).to_have_count(3)
    assert page.locator(".turn h3").all_text_contents() == ["Turn 1", "Turn 2", "Turn 3"]
    expect(page.locator(".column.answer .ranking > li")).to_have_count(10)
    assert page.locator(".took").all_text_contents() == [
        text for text in page.locator(".took").all_text_contents() if text.endswith("ms")
    ]
    body = {"instances": [{"user_id": user, "k": 10, "deadline_ms": DEADLINE}]}
    asked = httpx.post(f"{server.url}/v1/models/deeprec:predict", json=body, timeout=150).json()["predictions"][0]
    assert [item["id"] for item in asked["items"]] == [
        row.get_attribute("data-item") for row in page.locator(".column.answer .ranking > li").all()
    ]


def test_health_counts_what_was_answered(server: ServerProcess, visit: Callable[..., Page]) -> None:
    history = httpx.get(f"{server.url}/v1/items", params={"limit": 2}, timeout=30).json()["items"]
    address = "&".join(f"history={item['id']}" for item in history)
    page = visit(f"{server.url}/#explore?{address}&k=3&deadline=1")
    expect(page.locator("#verdict")).to_be_visible()
    expect(page.locator("#verdict")).to_contain_text("within 1 ms")
    page.get_by_role("tab", name="Health").click()
    expect(page.locator(".state")).to_contain_text("Ready")
    expect(page.locator(".facts")).to_contain_text("answers within the deadline")
    expect(page.locator(".reasons")).to_contain_text("The policy did not finish within the deadline")


def test_what_the_page_asks_is_described_and_guarded(server: ServerProcess) -> None:
    paths = httpx.get(f"{server.url}/openapi.json", timeout=30).json()["paths"]
    assert {"/", "/v1/items", "/v1/users", "/v1/history", "/v1/facets", "/v1/overview", "/v1/explore"} <= set(paths)
    explore = f"{server.url}/v1/explore"
    form = httpx.post(explore, data={"user_id": "u0001"}, timeout=30)
    assert form.status_code == 415
    refused = httpx.post(explore, json={"user_id": "u0001", "k": 10**9}, timeout=30)
    assert refused.status_code == 400
    assert "at most" in refused.json()["error"]
