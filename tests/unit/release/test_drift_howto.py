"""The how-to page of drift: its commands have their options, its YAML is the defaults, its figures are ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from typer.main import get_command

from deeprec.cli import drift
from deeprec.config import DriftConfig, parse_config
from deeprec.release.drift.figure import EXIT
from deeprec.release.drift.look import look
from tests.unit.release.test_drift_look import NOW, Bundle

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "drift.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_commands_exist_with_their_options(line: str) -> None:
    app = typer.Typer()
    drift.register(app)
    command = get_command(app)
    with command.make_context("drift", shlex.split(line)[2:], resilient_parsing=False) as context:
        assert context.params


def test_the_yaml_is_the_defaults_all_of_them() -> None:
    [block] = blocks("yaml")
    raw = yaml.safe_load(block)
    assert set(raw["drift"]) == set(DriftConfig.model_fields)
    assert parse_config(raw, "drift.md").drift == DriftConfig()


def test_every_figure_is_explained_and_every_status(tmp_path: Path) -> None:
    for figure in look(Bundle(tmp_path), None, None, DriftConfig(), NOW).figures:  # type: ignore[arg-type]
        assert f"\n| {figure.name} |" in PAGE
    for verdict, status in EXIT.items():
        assert re.search(rf"\n\| {status} \| {verdict}", PAGE)
