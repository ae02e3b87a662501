"""The how-to page of live histories: its Python runs, its commands have the options it names, its event is one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import polars as pl
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from deeprec.cli import app
from deeprec.config import FeaturesConfig
from deeprec.data.table import read_table
from deeprec.features.directory import DirectoryPlace
from deeprec.features.log import LoggedEvent
from deeprec.serving.events.routes import read_events
from deeprec.wire.events import MAX_EVENTS

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "live-history.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_log_is_imported_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shop").mkdir()
    place = DirectoryPlace("runs/shop/features")
    place.prepare()
    with place.log.locked(["u1", "u2"]) as users:
        users.append([LoggedEvent("e1", "u1", "i1", 30, 4.5), LoggedEvent("e2", "u2", "i1", 20)])
    rows = {"user_id": ["u1"], "item_id": ["i2"], "timestamp": [10], "shelf": [3]}
    pl.DataFrame(rows).write_parquet("shop/interactions.parquet")
    pl.DataFrame({"item_id": ["i1", "i2"], "title": ["A", "B"]}).write_parquet("shop/items.parquet")
    [export] = [line for block in blocks("sh") for line in block.splitlines() if "data events" in line]
    assert CliRunner().invoke(app, shlex.split(export)[1:]).exit_code == 0
    [code] = blocks("python")
    exec(compile(code, "docs/how-to/live-history.md", "exec"), {})
    source = read_table("shop", "interactions-now.parquet", "items.parquet", {}, (), None, "seconds")
    assert source.interactions.select("user_id", "item_id", "timestamp").rows() == [
        ("u1", "i2", 10),
        ("u1", "i1", 30),
        ("u2", "i1", 20),
    ]
    assert source.interactions["rating"].to_list() == [None, 4.5, None]


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines() if "deeprec " in line])
def test_commands_exist_with_their_options(line: str) -> None:
    program, group, name, *arguments = shlex.split(line)
    assert program == "deeprec"
    command = get_command(app).commands[group].commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, arguments, resilient_parsing=False):
        pass


def test_the_events_are_events() -> None:
    [curl] = [block for block in blocks("sh") if block.startswith("curl")]
    events = read_events(json.loads(shlex.split(curl)[-1]))
    assert [event.user_id for event in events] == ["u12", "a new user"]
    assert f"up to {MAX_EVENTS} events" in PAGE


def test_the_configuration_is_one() -> None:
    [block] = blocks("yaml")
    features = FeaturesConfig.model_validate(yaml.safe_load(block)["features"])
    assert features.place == "cluster"
