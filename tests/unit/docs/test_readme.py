"""The README: the commands that it names exist, and its table is the one that was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from deeprec.cli import app
from deeprec.config import Config
from deeprec.config.explained import keys

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_exist() -> None:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL))
    commands = get_command(app).commands  # type: ignore[attr-defined]
    named = re.findall(r"^(?:\S*/)?deeprec (\w+)(?: (\w+))?", shell, re.MULTILINE)
    assert {"run", "serve", "data", "explore", "policy"} <= {first for first, _ in named}
    for first, second in named:
        assert first in commands, first
        below = getattr(commands[first], "commands", None)
        assert below is None or second in below, (first, second)


def test_its_table_is_of_the_page_that_says_how_it_was_measured() -> None:
    measured = (ROOT / "docs" / "explanation" / "measured.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ((?:popularity|TRM|one list|fusion|policy)[^|]*) \| (0\.\d+) \| (0\.\d+) \|", PAGE, re.MULTILINE
    )
    assert len(rows) == 8
    for name, ndcg, recall in rows:
        assert f"| {name} | {recall} | {ndcg} |" in measured, name


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_figures_of_quality_live_on_the_page_that_says_how_they_were_measured(page: Path) -> None:
    measured = (ROOT / "docs" / "explanation" / "measured.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    figures = set(re.findall(r"(?<![\w.])0\.\d{4}(?![\w.])", prose))
    assert sorted(figures - set(re.findall(r"0\.\d{4}", measured))) == []


def test_every_page_is_in_the_index_and_links_lead_somewhere() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)]+)\)", index))
    assert all((ROOT / "docs" / path).exists() for path in linked)
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert pages - linked == set()


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "explanation").glob("*.md")), ids=lambda page: page.name)
def test_what_an_explanation_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:docs|helm|configs|pipelines)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    known = {key.name for key in keys(Config)}
    sections = {name.partition(".")[0] for name in known if "." in name}
    named = {
        name for name in re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)+)`", text) if name.partition(".")[0] in sections
    }
    assert {name for name in named if not name.endswith((".md", ".py", ".yaml", ".json", ".parquet"))} <= known


def test_pages_that_are_named_are_there() -> None:
    for path in re.findall(r"`((?:docs|helm|configs)/[\w./-]+)`", PAGE):
        assert (ROOT / path).exists(), path
