"""The reference pages that follow from the code are as `make docs` writes them."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_generated_pages_are_as_the_code_says() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "write.py"))["written"]()
    assert {path.name for path in written} == {"configuration.md", "command-line.md"}
    for path, content in written.items():
        assert path.read_text(encoding="utf-8") == content, f"make docs writes {path.name} anew"
