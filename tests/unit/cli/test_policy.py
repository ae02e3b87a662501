"""``deeprec policy``: one tiny policy through all of its steps, and what each command refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from kfp import dsl
from typer.testing import CliRunner

from deeprec.checks.gate import Verdict
from deeprec.cli import explore
from deeprec.cli.policy import app
from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError, CheckFailed, ConfigError, DeepRecError, StoreError
from deeprec.explore.loading import load_policy
from deeprec.pipelines.records import Records
from deeprec.policy.build import read_curves, read_explore
from deeprec.store import read_artifact
from deeprec.types import EndReason

SMALL = (
    "explore.prompt=compact",
    "explore.items_per_call=5",
    "explore.answer_size=3",
    "explore.prompt_history=4",
    "explore.max_calls=3",
    "explore.max_new_tokens=40",
    "explore.max_context=300",
    "policy.tiny={width: 32, layers: 1, heads: 2, inner: 32}",
    "policy.warm_start={trajectories: 60, epochs: 1, batch_size: 16}",
    "policy.select={candidates: 12, rollouts: 2}",
)
STAGE = "{steps: 1, prompts_per_step: 2, rollouts: 2, sequences_per_update: 4, micro_batch: 4, save_every: 1}"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fails(kind: type[DeepRecError], *arguments: object) -> str:
    with pytest.raises(kind) as caught:
        run(*arguments)
    assert caught.value.exit_code == (1 if kind is CheckFailed else 2)
    return str(caught.value)


def sets(*values: str) -> tuple[str, ...]:
    return tuple(text for value in values for text in ("--set", value))


@pytest.fixture(scope="module")
def where(sample_dataset: Path, toy_trm: Path) -> tuple[object, ...]:
    return ("--dataset", sample_dataset, "--trm", toy_trm)


@pytest.fixture(scope="module")
def models(where: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    run("init", *where, "--out", place / "init", *sets(*SMALL, "policy.warm_start.histories.passes=1"))
    return place


@pytest.mark.parametrize("command", ["init", "warm-start", "train", "evaluate", "trajectories"])
def test_every_command_explains_itself(command: str) -> None:
    assert f"deeprec policy {command}" in run(command, "--help").partition("Examples")[2].replace("\n", " ")


# ------------------------------------------------------------------------------------------------------- the steps


def test_all_steps_one_after_another(where: tuple[object, ...], models: Path) -> None:
    assert read_curves(models / "init") == []
    assert read_explore(models / "init").items_per_call == 5
    taught = run(
        "warm-start", *where, "--policy", models / "init", "--out", models / "start",
        *sets(*(value for value in SMALL if not value.startswith("explore."))),
    )  # fmt: skip
    assert "warm start on" in taught
    assert read_curves(models / "start")
    assert read_explore(models / "start") == read_explore(models / "init")

    stage = sets(f"policy.stage1={STAGE}", f"policy.stage2={STAGE}", SMALL[-1])
    common = (*where, "--prompts", models / "prompts", *stage)
    shown = run("train", "--stage", 1, "--policy", models / "start", "--out", models / "one", *common)
    assert f"prompts  {models / 'prompts'}" in shown
    assert "valid_rate" in shown
    assert "stage 1, validation target" in shown
    assert (models / "one.html").is_file()
    assert not (models / "one.checkpoint").exists()
    assert len(read_curves(models / "one")) == 1
    again = run("train", "--stage", 2, "--policy", models / "one", "--out", models / "two", *common)
    assert "prompts  " not in again
    parents = read_artifact(models / "two").parents
    assert read_artifact(models / "one").digest in parents.values()
    assert load_policy(models / "two")

    page = models / "page.html"
    kept = run(
        "trajectories", models / "prompts.rollouts" / "trajectories.parquet", *where, "--out", page, *sets(*SMALL[:7])
    )  # fmt: skip
    assert "(24 of 24 trajectories)" in kept
    assert "All 24 rollouts." in page.read_text()

    report = models / "policy.html"
    arguments = ("evaluate", models / "two", *where, "--users", 6)
    shown = run(*arguments, "--show", 1, "--report", report)
    assert "validation target, 6 users" in shown
    for text in ("popularity", "TRM alone", "policy: 6 of 6 users", "ended: ", "broken format rules: ", "target: "):
        assert text in shown
    assert "All 6 rollouts." in report.read_text()
    told = json.loads(run(*arguments, "--json"))
    assert set(told["metrics"]) == {"popularity", "trm", "policy"}
    assert f"{told['metrics']['trm']['ndcg@10']:.4f}" in shown
    assert sum(told["ends"].values()) == 6


def test_a_policy_that_was_built_explores(
    models: Path, make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path
) -> None:
    shell = typer.Typer()
    explore.register(shell)
    titles = [item.title for item in dataset.catalogue.items]
    bundle = make_bundle(tmp_path / "bundle", titles)
    arguments = [str(bundle), "--history", titles[0], "--policy", str(models / "init"), "--temperature", "1", "--json"]
    result = CliRunner().invoke(shell, arguments, catch_exceptions=False)
    told = json.loads(result.output)
    assert told["end"] in set(EndReason)
    assert len(told["trm"]) == 3
    assert told["valid"] == (told["violations"] == [])


# ------------------------------------------------------------------------------------------------ runs and resuming


class Stage:
    """In place of a stage's training: what it was asked for, and whether its gate passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, passed: bool = True) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.passed = passed
        monkeypatch.setattr("deeprec.policy.launch.train_stage", self)

    def __call__(self, *arguments: Any, progress: Any) -> tuple[Verdict, dict[str, float]]:
        self.calls.append(arguments)
        progress("stage: step 1")
        return Verdict("stage1", self.passed, "stage1: valid_rate 0.1 is below 0.8", ()), {"valid_rate": 0.1}


@pytest.fixture
def finished(models: Path, sample_dataset: Path, toy_trm: Path, tmp_path: Path) -> Path:
    """The directory of a run that has made all but its second stage."""
    place = tmp_path / "run"
    records = Records(place / "cache")
    names = {
        "ingest": ("dataset", sample_dataset),
        "train-trm": ("model", toy_trm),
        "build-policy": ("start", models / "init"),
        "select-prompts": ("prompts", models / "init"),
        "train-stage-1": ("trained", models / "init"),
    }
    for task, (output, artifact) in names.items():
        records.keep(task, task, {output: dsl.Artifact(name=output, uri=str(artifact), metadata={})}, 1.0)
    explore = {"prompt": "compact", "items_per_call": 7}
    (place / "config.yaml").write_text(json.dumps({"seed": 11, "explore": explore}), encoding="utf-8")
    return place


def test_a_run_gives_what_is_not_named(
    finished: Path, models: Path, toy_trm: Path, sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(monkeypatch)
    shown = run("train", "--stage", 2, "--run", finished, "--out", tmp_path / "two", *sets("policy.stage2.steps=3"))
    assert "stage: step 1" in shown
    [(name, dataset, trm, start, prompts, policy, explore, _, text, seed, out, report, checkpoint)] = stage.calls
    assert (name, dataset, trm, start, prompts) == (
        "stage2", sample_dataset, toy_trm, models / "init", models / "init",
    )  # fmt: skip
    assert (policy.stage2.steps, explore.items_per_call, seed, text.provider) == (3, 7, 11, "hashing")
    assert (out, report) == (tmp_path / "two", tmp_path / "two.html")
    assert checkpoint == tmp_path / "two.checkpoint"
    assert "has made no stage2 yet" in fails(ConfigError, "evaluate", "--run", finished)


def test_a_killed_training_is_gone_on_with_unless_fresh(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stage(monkeypatch)
    state = tmp_path / "one.checkpoint"
    state.mkdir()
    (state / "fingerprint.txt").touch()
    arguments = ("train", "--stage", 1, "--run", finished, "--out", tmp_path / "one")
    assert f"going on with the training in {state}" in run(*arguments)
    assert state.exists()
    assert "going on" not in run(*arguments, "--fresh")
    assert not state.exists()


def test_a_gate_that_does_not_pass_is_exit_status_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stage(monkeypatch, passed=False)
    message = fails(CheckFailed, "train", "--stage", 1, "--run", finished, "--out", tmp_path / "one")
    assert message == f"stage1: valid_rate 0.1 is below 0.8 (report: {tmp_path / 'one.html'})"


# ----------------------------------------------------------------------------------------------------------- errors


def test_nothing_is_overwritten(finished: Path, models: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    for command in (("init",), ("warm-start", "--policy", models / "init"), ("train", "--stage", 1)):
        for out in (models / "init", tmp_path / "taken"):
            assert "exists; name another directory" in fails(StoreError, *command, "--run", finished, "--out", out)


def test_what_is_missing_is_named(where: tuple[object, ...], models: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x")
    assert "--dataset is missing" in fails(ConfigError, "init", *out)
    assert "--trm is missing" in fails(ConfigError, "init", *where[:2], *out)
    assert "--policy is missing" in fails(ConfigError, "warm-start", *where, *out)
    assert "--policy is missing" in fails(ConfigError, "train", "--stage", 1, *where, *out)
    assert "--prompts is missing" in fails(
        ConfigError, "train", "--stage", 1, "--policy", models / "init", *where, *out
    )
    assert "not the directory of a run" in fails(ArtifactError, "init", "--run", tmp_path, *out)
    assert "unknown key policy.tinny" in fails(ConfigError, "init", *where, *out, *sets("policy.tinny=1"))
    assert "no such profile" in fails(ConfigError, "init", *where, *out, "--config", "absent")
    assert "no split 'train'" in fails(ConfigError, "evaluate", models / "init", *where, "--split", "train")
    assert "does not exist" in fails(ArtifactError, "evaluate", tmp_path / "absent", *where)
    assert list(tmp_path.iterdir()) == []
