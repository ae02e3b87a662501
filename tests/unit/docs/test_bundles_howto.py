"""The page on bundles shows commands that exist, and keys that are settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec.cli import app
from deeprec.config import Config

PAGE = (Path(__file__).parents[3] / "docs/how-to/bundles.md").read_text(encoding="utf-8")
LINES = [line.partition("#")[0].strip() for line in re.findall(r"^deeprec .*$", PAGE, re.MULTILINE)]


@pytest.mark.parametrize("line", LINES)
def test_commands_exist_with_their_options(line: str) -> None:
    words = shlex.split(line)[1:]
    shown = CliRunner().invoke(app, [*words[:2], "--help"]).output
    assert "Usage" in shown
    assert all(word in shown for word in words if word.startswith("--"))


def test_every_command_of_the_group_is_named() -> None:
    named = set(re.findall(r"deeprec bundle (\w+)", PAGE))
    assert named == {"push", "list", "promote", "rollback", "inspect", "verify", "extend"}


def test_its_keys_are_settings() -> None:
    config = Config()
    for section, key in re.findall(r"`(bundle|serving)\.(\w+)`", PAGE):
        assert hasattr(getattr(config, section), key), f"{section}.{key}"
