"""The how-to page of the analyst's page: its routes and limits are the server's, its pictures are there and small."""

from __future__ import annotations

import json
import re
from pathlib import Path

from deeprec.config import DoorsConfig
from deeprec.serving.page.routes import HEARTBEAT, Sources, routers
from deeprec.wire.request import RecommendRequest
from tests.unit.serving.pages import BUNDLE, Pages

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "how-to" / "page.md").read_text(encoding="utf-8")
LARGEST = 300_000


def test_its_routes_are_those_of_the_page() -> None:
    pages = Pages()
    try:
        sources = Sources(lambda: pages.recommender, lambda: BUNDLE, pages.metrics)
        found = [route for router in routers(sources, DoorsConfig()) for route in router.routes]
        routes = {f"{method} {route.path}" for route in found for method in route.methods}
    finally:
        pages.recommender.close()
    assert set(re.findall(r"^\| `(\w+ /[\w/]+)", PAGE, flags=re.M)) == routes - {"GET /"}


def test_its_request_is_one_and_its_events_and_heartbeat_are_so() -> None:
    [body] = re.findall(r"-d '(.*)'", PAGE)
    assert RecommendRequest.model_validate(json.loads(body)).k == 5
    assert HEARTBEAT == 5
    assert "every five seconds" in PAGE


def test_its_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(\.\./(images/[\w-]+\.png)\)", PAGE)
    assert pictures
    for picture in [*pictures, "images/page-dark.png"]:
        assert 10_000 < (DOCS / picture).stat().st_size <= LARGEST
