"""The page's routes over the real recommender: what they give, refuse and never let through."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from deeprec.serving.page import routes as page
from deeprec.serving.page.routes import assemble
from deeprec.wire.request import RecommendRequest
from tests.unit.serving.pages import ATTACK, ATTACKS, CATALOGUE, HISTORIES, Pages

Made = Callable[..., Pages]


@pytest.fixture
def made() -> Iterator[Made]:
    kept: list[Pages] = []

    def make(**options: Any) -> Pages:
        kept.append(Pages(**options))
        return kept[-1]

    yield make
    for pages in kept:
        pages.recommender.close()


def ask(pages: Pages, method: str, path: str, **request: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(pages.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **request)

    return asyncio.run(call())


def get(pages: Pages, path: str, **parameters: Any) -> Any:
    answer = ask(pages, "GET", path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(text: str) -> list[tuple[str, Any]]:
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.split("\n\n") if block]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


# ------------------------------------------------------------------------------------------------------- the document


def test_the_document_is_whole_and_its_policy_allows_nothing_else(made: Made) -> None:
    answer = ask(made(), "GET", "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    for tag in ("script", "style"):
        inlined = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inlined}
        allowed = re.search(rf"{tag}-src ([^;]*)", policy)
        assert inlined
        assert allowed
        assert set(allowed[1].split()) == hashes
    loading = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?([^\"'>]*)", answer.text)
    assert all(address.startswith("data:") for address in loading)
    assert not re.search(r"\bon\w+=|style=|innerHTML|outerHTML|insertAdjacentHTML|document\.write", answer.text)


def test_the_document_is_sent_again_only_when_it_has_changed(made: Made) -> None:
    pages = made()
    first = ask(pages, "GET", "/")
    again = ask(pages, "GET", "/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert ask(pages, "GET", "/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_every_script_written_is_part_of_the_document() -> None:
    import importlib.resources

    document, _ = assemble()
    files = list(importlib.resources.files("deeprec.serving.page").joinpath("web").iterdir())
    assert {"page.html", "page.css", "main.js"} <= {file.name for file in files}
    assert all(file.read_text(encoding="utf-8") in document for file in files if file.name != "page.html")
    assert not re.search(r'(src|href)="[\w.]+\.(js|css)"', document)


# -------------------------------------------------------------------------------------------------------- looking up


def test_items_are_found_by_title_and_by_id(made: Made) -> None:
    pages = made()
    assert get(pages, "/v1/items", query="AMELIE")["items"] == [
        {"id": "i6", "title": "Amélie", "phrases": [ATTACK, "1980s"]}
    ]
    assert [item["id"] for item in get(pages, "/v1/items", query="harbour", limit=3)["items"]] == ["i7", "i8", "i9"]
    named = get(pages, "/v1/items", id=["i9", "nowhere", "i2", "i9"])["items"]
    assert [item["id"] for item in named] == ["i9", "i2"]
    assert get(pages, "/v1/items", query=ATTACKS[0])["items"][0]["title"] == ATTACKS[0]


def test_users_are_found_by_part_of_their_id_or_by_all_of_it(made: Made) -> None:
    pages = made()
    assert get(pages, "/v1/users", query="ANN")["users"] == [
        {"id": "ann", "interactions": 4},
        {"id": "ann/other & more", "interactions": 1},
    ]
    assert len(get(pages, "/v1/users", limit=2)["users"]) == 2
    pages.knowing.published["ann"] = 1
    assert get(pages, "/v1/users", query="an")["users"][0] == {"id": "ann", "interactions": 1}
    assert get(pages, "/v1/users", query="ann")["users"][0] == {"id": "ann", "interactions": 4}, "the live history's"
    assert get(made(histories=False), "/v1/users", query="ann")["users"] == []


def test_a_history_holds_what_the_catalogue_has(made: Made) -> None:
    pages = made()
    had = get(pages, "/v1/history", user_id="ann")
    assert (had["known"], had["interactions"]) == (True, len(HISTORIES["ann"]))
    assert [item["id"] for item in had["items"]] == ["i30", "i31", "i32"]
    stranger = get(pages, "/v1/history", user_id="nobody")
    assert stranger == {"user_id": "nobody", "known": False, "interactions": 0, "items": []}


def test_facets_name_columns_values_and_limits(made: Made) -> None:
    facets = get(made(deadline_ms=700, max_k=50), "/v1/facets")
    assert [(column["name"], column["numeric"]) for column in facets["columns"]] == [("genres", False), ("year", True)]
    assert (facets["limits"]["deadline_ms"], facets["limits"]["max_k"], facets["limits"]["max_filters"]) == (
        700,
        50,
        10,
    )
    assert (facets["items"], facets["users"], facets["example_user"]) == (len(CATALOGUE), True, "ann")
    without = get(made(histories=False), "/v1/facets")
    assert (without["users"], without["example_user"]) == (False, None)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/items?limit=0",
        "/v1/items?limit=1000",
        "/v1/items?limit=x",
        f"/v1/items?query={'x' * 101}",
        "/v1/items?" + "&".join(["id=i1"] * 101),
        "/v1/users?limit=51",
        "/v1/history",
        "/v1/history?user_id=",
    ],
)
def test_what_is_out_of_bounds_is_refused_in_one_sentence(made: Made, path: str) -> None:
    answer = ask(made(), "GET", path)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]


def test_a_feature_store_that_fails_is_said_and_its_reason_is_not(made: Made) -> None:
    pages = made()
    pages.knowing.fails = True
    for path in ("/v1/users?query=ann", "/v1/history?user_id=ann"):
        answer = ask(pages, "GET", path)
        assert answer.status_code == 503
        assert "feature store" in answer.json()["error"]
        assert "secret" not in answer.text


# --------------------------------------------------------------------------------------------------------- exploring


def explore(pages: Pages, **request: Any) -> list[tuple[str, Any]]:
    answer = ask(pages, "POST", "/v1/explore", json=request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    return events(answer.text)


def test_the_steps_come_in_order_and_the_answer_last(made: Made) -> None:
    told = explore(made(), user_id="ann", k=5, deadline_ms=20_000)
    assert [event for event, _ in told] == ["trm", "turn", "call", "turn", "call", "turn", "answer"]
    assert [item["id"] for item in told[0][1]["items"]] == ["i0", "i1", "i2", "i3", "i4"]
    second = told[4][1]
    assert (second["turn"], second["preference"], second["thought"]) == (2, f"comedy; {ATTACK}", f"Thought 2: {ATTACK}")
    assert [(item["id"], item["new"]) for item in second["items"]] == [
        ("i3", False), ("i1", False), ("i12", True), ("i13", True)
    ]  # fmt: skip
    assert second["items"][0]["phrases"] == ["comedy", "drama", "1980s"]
    answer = told[-1][1]
    assert answer["path"] == "policy"
    assert [(item["id"], item["turn"]) for item in answer["items"]][:3] == [("i3", 1), ("i0", 1), ("i12", 2)]
    assert answer["milliseconds"]["turns"] == [11.0, 22.0, 33.0]
    assert [item["id"] for item in answer["trm"]] == ["i0", "i1", "i2", "i3", "i4"]
    assert all("phrases" in item for item in (*answer["items"], *answer["trm"]))


def test_an_answer_without_the_policy_says_why(made: Made) -> None:
    pages = made()
    pages.exploring.unavailable = "the policy is being restarted"
    (*_, (event, answer)) = explore(pages, user_id="ann", k=3)
    assert (event, answer["path"], answer["reason"]["sentence"]) == ("answer", "trm", "the policy is being restarted")
    (*_, (event, answer)) = explore(pages, user_id="nobody", k=3)
    assert (answer["path"], answer["reason"]["sentence"]) == ("popularity", "the user is unknown")


def test_what_cannot_be_asked_is_an_error(made: Made) -> None:
    pages = made()
    for body, part in (
        ({"user": "ann"}, "unknown field"),
        ({"user_id": "ann", "k": 10**6}, "at most"),
        ({}, "user_id"),
    ):
        answer = ask(pages, "POST", "/v1/explore", json=body)
        assert answer.status_code == 400
        assert part in answer.json()["error"]
    assert ask(pages, "POST", "/v1/explore", content=b"{}").status_code == 415
    wrong = [{"column": "nowhere", "operator": "=", "value": 1}]
    ((event, data),) = explore(pages, user_id="ann", filters=wrong)
    assert event == "error"
    assert "nowhere" in data["error"]


def test_a_failure_is_one_sentence_without_its_reason(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = made()

    async def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(pages.recommender, "recommend", fail)
    ((event, data),) = explore(pages, user_id="ann")
    assert event == "error"
    assert "secret" not in data["error"]


def test_a_slow_step_keeps_the_stream_open(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step takes as long as three signs of life."""
    monkeypatch.setattr(page, "HEARTBEAT", 0.02)
    pages = made()
    pages.exploring.held = True

    async def listen() -> str:
        parts: list[bytes] = []
        async for part in page._events(pages.recommender, RecommendRequest(user_id="ann", deadline_ms=30_000)):
            parts.append(part)
            if parts.count(b": waiting\n\n") == 3:
                pages.exploring.steps = 3
        return b"".join(parts).decode()

    assert events(asyncio.run(listen()))[-1][1]["path"] == "policy"


def test_a_client_that_goes_away_ends_the_exploration(made: Made) -> None:
    pages = made()
    pages.exploring.pause = 30.0

    async def go_away() -> None:
        body = json.dumps({"user_id": "ann", "deadline_ms": 30_000}).encode()
        turned = asyncio.Event()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await turned.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if b"event: turn" in message.get("body", b""):
                turned.set()

        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/explore",
            "raw_path": b"/v1/explore",
            "headers": headers,
        }
        asgi = {"asgi": {"version": "3.0", "spec_version": "2.3"}, "query_string": b"", "http_version": "1.1"}
        await asyncio.wait_for(pages.app({**scope, **asgi}, receive, send), 20)
        for _ in range(200):
            if pages.exploring.cancelled:
                return
            await asyncio.sleep(0.01)

    asyncio.run(go_away())
    assert pages.exploring.cancelled == 1


# ------------------------------------------------------------------------------------------------------------- health


def test_the_overview_shows_bundle_figures_and_the_last_hour(made: Made) -> None:
    pages = made()
    explore(pages, user_id="ann", k=5, deadline_ms=20_000)
    overview = get(pages, "/v1/overview")
    assert (overview["ready"], overview["refused"], overview["features"]) == (True, None, True)
    assert overview["policy"] is True
    assert overview["bundle"]["version"] == "f00dfeed0001"
    assert overview["bundle"]["serve"] == "policy"
    assert overview["recommenders"]["stage2"]["ndcg@10"] == 0.0712
    assert overview["recommenders"]["trm"]["recall@10"] is None
    assert overview["policy_minus_trm"]["low"] == 0.0004
    assert overview["last_hour"]["requests"] == 1
    assert overview["last_hour"]["paths"] == {"policy": 1}
    pages.refused = "the policy was not made from this TRM"
    assert get(pages, "/v1/overview")["refused"] == "the policy was not made from this TRM"


def test_the_routes_are_described(made: Made) -> None:
    paths = made().routes.openapi()["paths"]
    assert {"/", "/v1/items", "/v1/users", "/v1/history", "/v1/facets", "/v1/overview", "/v1/explore"} <= set(paths)
    body = paths["/v1/explore"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/RecommendRequest"}
