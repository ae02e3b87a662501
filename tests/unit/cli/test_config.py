"""What `deeprec config` prints: configurations that can be read again, keys explained, a schema that is one."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from deeprec.cli import app
from deeprec.config import Config, load_config
from deeprec.config.explained import below, keys
from deeprec.errors import ConfigError

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["config", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_what_is_shown_can_be_read_again(tmp_path: Path) -> None:
    for options in (("--config", "cluster"), ("--config", "cluster", "--changed"), ("--set", "trm.epochs=3")):
        (tmp_path / "shown.yaml").write_text(run("show", *options), encoding="utf-8")
        again = load_config(tmp_path / "shown.yaml")
        expected = load_config(ROOT / "configs" / "cluster.yaml") if "cluster" in options else Config()
        assert again.model_copy(update={"trm": expected.trm}) == expected
    assert again.trm.epochs == 3


def test_a_part_is_shown_and_only_what_was_changed() -> None:
    assert yaml.safe_load(run("show", "trm.gate", "--set", "trm.gate.min_ndcg_10=0.5"))["min_ndcg_10"] == 0.5
    assert yaml.safe_load(run("show", "trm", "--changed", "--set", "trm.epochs=3")) == {"epochs": 3}
    assert yaml.safe_load(run("show", "--changed")) == {}


def test_a_key_is_explained_with_what_it_takes_and_how_it_is_set() -> None:
    told = run("explain", "serving.deadline_ms")
    for part in (
        "Default deadline",
        "integer, above 0",
        "1000",
        "--set serving.deadline_ms=…",
        "DEEPREC__SERVING__DEADLINE_MS=…",
    ):
        assert part in told
    assert "`" not in run("explain", "data.source")
    assert "trm.index.recall" in run("explain", "trm.index")
    assert [line.split()[0] for line in run("explain").splitlines()] == [key.name for key in below(Config)]


@pytest.mark.parametrize(
    ("name", "cure"),
    [("serving.deadlin_ms", "did you mean serving.deadline_ms"), ("epochs", "did you mean trm.epochs"), ("§", "lists")],
)
def test_a_key_that_does_not_exist_is_answered_with_the_nearest(name: str, cure: str) -> None:
    done = CliRunner().invoke(app, ["config", "explain", name])
    assert isinstance(done.exception, ConfigError)
    assert cure in str(done.exception)


def test_every_key_is_explained() -> None:
    assert [key.name for key in keys(Config) if not key.text] == []


def test_the_schema_takes_every_profile_and_no_other_keys() -> None:
    schema = json.loads(run("schema"))
    assert schema["title"] == "DeepRec"
    checker = jsonschema.Draft202012Validator(schema)
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        checker.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert list(checker.iter_errors({"trm": {"epoch": 3}}))
