"""The page of `deeprec serve recommender` itself: KServe's application, a feature store, a tiny policy that answers."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from playwright.sync_api import Page, expect

from tests.integration.rooms import PATIENCE_MS
from tests.integration.servers import ServerProcess

pytest_plugins = ["tests.integration.rooms"]


def test_a_user_of_the_feature_store_is_explored_live(visit: Callable[..., Page], recommender: ServerProcess) -> None:
    page = visit(recommender.url)
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
    body = {"instances": [{"user_id": user, "k": 10, "deadline_ms": PATIENCE_MS}]}
    asked = httpx.post(f"{recommender.url}/v1/models/deeprec:predict", json=body, timeout=150).json()["predictions"][0]
    assert [item["id"] for item in asked["items"]] == [
        row.get_attribute("data-item") for row in page.locator(".column.answer .ranking > li").all()
    ]


def test_health_counts_what_was_answered(visit: Callable[..., Page], recommender: ServerProcess) -> None:
    history = httpx.get(f"{recommender.url}/v1/items", params={"limit": 2}, timeout=30).json()["items"]
    address = "&".join(f"history={item['id']}" for item in history)
    page = visit(f"{recommender.url}/#explore?{address}&k=3&deadline=1")
    expect(page.locator("#verdict")).to_be_visible()
    expect(page.locator("#verdict")).to_contain_text("within 1 ms")
    page.get_by_role("tab", name="Health").click()
    expect(page.locator(".state")).to_contain_text("Ready")
    expect(page.locator(".facts")).to_contain_text("answers within the deadline")
    expect(page.locator(".reasons")).to_contain_text("The policy did not finish within the deadline")


def test_what_the_page_asks_is_described_and_guarded(recommender: ServerProcess) -> None:
    paths = httpx.get(f"{recommender.url}/openapi.json", timeout=30).json()["paths"]
    assert {"/", "/v1/items", "/v1/users", "/v1/history", "/v1/facets", "/v1/overview", "/v1/explore"} <= set(paths)
    explore = f"{recommender.url}/v1/explore"
    form = httpx.post(explore, data={"user_id": "u0001"}, timeout=30)
    assert form.status_code == 415
    refused = httpx.post(explore, json={"user_id": "u0001", "k": 10**9}, timeout=30)
    assert refused.status_code == 400
    assert "at most" in refused.json()["error"]
