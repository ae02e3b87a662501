"""The how-to page of shadow mode: its commands have their options, its YAML is configuration, its tables are ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from deeprec.cli import app
from deeprec.config import parse_config
from deeprec.evaluation.shadow import evaluate_shadow
from deeprec.evaluation.shadow_report import tables
from tests.unit.evaluation.test_later import later_events, requests, took

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "shadow.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("deeprec ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist_with_their_options(line: str) -> None:
    _, group, name, *arguments = shlex.split(line)
    command = get_command(app).commands[group].commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, arguments, resilient_parsing=False) as context:
        assert context.params


def test_there_are_commands() -> None:
    assert [line.split()[1] for line in COMMANDS] == ["serve", "evaluate", "evaluate"]


def test_yaml_is_configuration() -> None:
    [block] = blocks("yaml")
    serving = parse_config(yaml.safe_load(block), "shadow.md").serving
    assert (serving.shadow, serving.log.path, serving.log.sample) == (True, "logs/shadow", 0.2)


def test_the_output_shown_has_the_tables_of_the_command() -> None:
    rows = requests(("u1", 0, "ab", "ba"), ("u2", 0, "ab", ""))
    found = evaluate_shadow(rows, later=later_events(rows, took(("u1", 1, "a")), k=10, resamples=10))
    for table in tables(found):
        assert f"\n{table.title}\n┏" in PAGE
        for column in table.columns:
            assert column in PAGE


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+\.md)\)", PAGE):
        assert (Path(__file__).parents[3] / "docs" / "how-to" / target).is_file()
