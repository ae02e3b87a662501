"""The reference page on HTTP is what a recommender's OpenAPI document says; `make docs` writes it anew."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import httpx

from tests.integration.servers import ServerProcess

pytest_plugins = ["tests.integration.rooms"]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "http.md"


def test_the_page_is_as_the_server_says(recommender: ServerProcess) -> None:
    document = httpx.get(f"{recommender.url}/openapi.json", timeout=60).json()
    written = runpy.run_path(str(ROOT / "docs" / "write.py"))["http"](document)
    if os.environ.get("DEEPREC_UPDATE_GOLDEN"):
        PAGE.write_text(written, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == written, "make docs writes it anew"
