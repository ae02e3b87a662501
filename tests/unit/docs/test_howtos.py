"""Pages of commands: alerts and reasons are all there, keys are keys, commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from deeprec.cli import app
from deeprec.config import Config
from deeprec.config.explained import keys
from deeprec.wire.reason import DESCRIPTIONS

ROOT = Path(__file__).parents[3]
CHART = ROOT / "helm" / "deeprec"
PAGES = {
    name: (ROOT / "docs" / "how-to" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("install", "operate", "troubleshoot", "own-data")
} | {"upgrade": (CHART / "UPGRADE.md").read_text(encoding="utf-8")}


def value_names(tree: object, above: str = "") -> set[str]:
    """Every key of the chart's values by its whole name."""
    if not isinstance(tree, dict):
        return set()
    return {f"{above}{key}" for key in tree} | {
        name for key, value in tree.items() for name in value_names(value, f"{above}{key}.")
    }


VALUES = value_names(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")))
KEYS = {key.name for key in keys(Config)}


def test_every_alert_has_the_section_that_it_links_to() -> None:
    text = re.sub(r"\{\{.*?\}\}", "x", (CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    assert re.findall(r"^### (\w+)$", PAGES["operate"], re.MULTILINE) == [rule["alert"] for rule in rules]
    for rule in rules:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page.endswith("/docs/how-to/operate.md")
        assert anchor == rule["alert"].lower()
        assert f"*{rule['annotations']['summary']}*" in PAGES["operate"]


def test_every_reason_is_explained() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGES["operate"], re.MULTILINE))
    assert rows == {kind.value: text for kind, text in DESCRIPTIONS.items()}


@pytest.mark.parametrize("name", PAGES)
def test_what_is_named_is_there(name: str) -> None:
    groups = {one.partition(".")[0] for one in VALUES | KEYS} - {"name", "seed"}
    named = set(re.findall(r"`([a-z]+(?:\.[A-Za-z_]+)+)`", PAGES[name]))
    named = {one for one in named if one.partition(".")[0] in groups and not one.endswith((".md", ".yaml", ".py"))}
    unknown = {one for one in named if one not in VALUES | KEYS and not one.startswith("pipeline.tasks.")}
    assert unknown == set()


LINES = [
    line
    for page in PAGES.values()
    for block in re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("deeprec ")
]


@pytest.mark.parametrize("line", LINES)
def test_commands_exist_with_their_options(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    if hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    with command.make_context(name, arguments, resilient_parsing=True):
        assert not [one for one in arguments if one.startswith("--") and not any(one in p.opts for p in command.params)]


def test_each_trouble_has_what_is_seen_why_and_a_cure() -> None:
    rows = [line for line in PAGES["troubleshoot"].splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 25
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 3, row
        assert all(cells), row


def test_pages_that_are_named_are_there() -> None:
    for page in PAGES.values():
        for path in re.findall(r"`((?:docs|helm|manifests)/[\w./-]+)`", page):
            assert (ROOT / path).exists(), path


def test_the_configuration_that_is_shown_is_one() -> None:
    [shown] = re.findall(r"```yaml\n(.*?)```", PAGES["own-data"], flags=re.DOTALL)
    found = Config.model_validate(yaml.safe_load(shown))
    assert found.data.columns["user_id"] == "customer"
    assert found.data.year_column is None
