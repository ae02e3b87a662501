"""The configuration tree: what it accepts, what it refuses, and what its messages say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deeprec.config import Config, load_config, parse_config
from deeprec.errors import ConfigError

PROFILES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def _write(folder: Path, text: str) -> Path:
    path = folder / "profile.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_every_committed_profile_parses(path: Path) -> None:
    assert load_config(path).name


def test_there_are_committed_profiles() -> None:
    assert {"quickstart.yaml", "ml-1m.yaml"} <= {path.name for path in PROFILES}


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path, ""))
    assert config == Config()
    assert config.explore.answer_size == 10


@pytest.mark.parametrize(
    ("raw", "key"),
    [({"trm": {"epoch": 3}}, "trm.epoch"), ({"tmr": {}}, "tmr"), ({"policy": {"tiny": {"hieght": 1}}}, "tiny.hieght")],
)
def test_unknown_keys_are_refused_by_name(raw: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"here: unknown key .*{key}; remove it or correct its spelling"):
        parse_config(raw, "here")


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"seed": -1, "trm": {"epochs": 0, "speed": 1}}, "p.yaml")
    message = str(caught.value)
    assert message.startswith("p.yaml: ")
    assert "seed: Input should be greater than or equal to 0 (got -1)" in message
    assert "trm.epochs" in message
    assert "unknown key trm.speed" in message


def test_overrides_are_yaml_values(tmp_path: Path) -> None:
    path = _write(tmp_path, "trm:\n  epochs: 2\n")
    config = load_config(
        path,
        ("trm.epochs=7", "trm.bf16=false", "data.path=/some/where=odd", "data.text_columns=[genres, maker]", "seed=3"),
    )
    assert config.trm.epochs == 7
    assert config.trm.bf16 is False
    assert config.data.path == "/some/where=odd"
    assert config.data.text_columns == ("genres", "maker")
    assert config.seed == 3


def test_the_last_override_wins_and_an_empty_one_is_an_empty_string(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path, "bundle: {uri: s3://b/p}\n"), ("seed=1", "seed=2", "bundle.uri="))
    assert config.seed == 2
    assert config.bundle.uri == ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trm.epochs", "not of the form section.key=value"),
        ("=5", "not of the form section.key=value"),
        ("seed.deep=1", "seed is a value, not a section"),
        ("trm.epochs=[1", "not valid YAML"),
        ("trm.epochs=many", "trm.epochs"),
        ("trm.epoch=5", "unknown key trm.epoch"),
    ],
)
def test_bad_overrides_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(_write(tmp_path, "seed: 1\n"), (override,))


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n", "holds a list, not a mapping"), ("a: [", "not valid YAML"), ("a: \0", "not valid")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(_write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (
            {"data": {"policy_positions": 4, "min_user_interactions": 5}},
            ["min_user_interactions is 5", "needs at least 7", "raise min_user_interactions"],
        ),
        (
            {"explore": {"answer_size": 50, "items_per_call": 5, "max_calls": 3}},
            ["answer_size is 50", "retrieve at most 15", "lower answer_size"],
        ),
        (
            {"policy": {"stage1": {"prompts_per_step": 10, "rollouts": 8, "sequences_per_update": 64}}},
            ["10 × 8 = 80", "sequences_per_update=64", "change one"],
        ),
        (
            {
                "policy": {
                    "stage2": {"prompts_per_step": 9, "rollouts": 8, "sequences_per_update": 72, "micro_batch": 12}
                }
            },
            ["micro_batch=12", "rollouts=8", "divide one another"],
        ),
        (
            {"policy": {"model": "org/model"}, "explore": {"prompt": "compact"}},
            ["explore.prompt is 'compact'", "'org/model'", "to 'full'"],
        ),
    ],
)
def test_contradictions_name_value_rule_and_cure(raw: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, "p.yaml")
    for part in parts:
        assert part in str(caught.value)


def test_the_tree_is_frozen_and_every_field_is_described() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]
    schema = Config.model_json_schema()
    undescribed = [
        f"{section}.{name}"
        for section, definition in schema["$defs"].items()
        for name, field in definition.get("properties", {}).items()
        if "description" not in field and "$ref" not in field and "allOf" not in field
    ]
    assert undescribed == []


@pytest.mark.parametrize("name", ["UPPER", "with space", "../up", "", "a" * 42])
def test_names_that_make_no_directory_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        parse_config({"name": name}, "p")
