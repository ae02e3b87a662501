"""The component that trains a stage of the policy hands on what the runner keeps for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deeprec.checks.gate import CheckRow, Verdict
from deeprec.components.boundary import CHECKPOINTS, CLAIM
from deeprec.components.train_stage import train_stage
from deeprec.policy import launch

PASSED = Verdict.of("data", [CheckRow("a", "1", "r", True)])
INPUTS = ("dataset", "trm", "start", "prompts")
Train = Callable[..., tuple[Any, ...]]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs the component with these settings; what it asked the training for."""
    calls: list[tuple[Any, ...]] = []

    def trained(*arguments: Any) -> tuple[Verdict, dict[str, float]]:
        calls.append(arguments)
        return PASSED, {"valid_rate": 0.9}

    monkeypatch.setattr(launch, "train_stage", trained)
    for name in (CHECKPOINTS, CLAIM):
        monkeypatch.delenv(name, raising=False)

    def run(settings: dict[str, Any], log: Callable[[str, float], None] = lambda name, value: None) -> tuple[Any, ...]:
        artifacts = {
            name: SimpleNamespace(path=str(tmp_path / name), uri=f"s3://a/{name}", metadata={})
            for name in (*INPUTS, "trained", "report", "outcome")
        }
        train_stage.python_func(
            stage="stage2", gate=PASSED.to_json(), policy={"stage2": {"steps": 1}}, settings=settings, explore={},
            rewards={}, text={}, seed=5, **artifacts, metrics=SimpleNamespace(log_metric=log),
            verdict=str(tmp_path / "verdict"),
        )  # fmt: skip
        return calls[-1]

    return run


@pytest.mark.parametrize("kept", [True, False])
def test_a_killed_stage_is_gone_on_with_where_the_runner_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Train, kept: bool
) -> None:
    if kept:
        monkeypatch.setenv(CHECKPOINTS, str(tmp_path / "kept"))
    logged: dict[str, float] = {}
    stage, dataset, trm, start, prompts, policy, _, _, _, seed, trained, report, checkpoints = train(
        {"steps": 3}, logged.__setitem__
    )
    assert checkpoints == (tmp_path / "kept" if kept else None)
    assert (dataset, trm, start, prompts) == tuple(tmp_path / name for name in INPUTS)
    assert (trained, report) == (tmp_path / "trained", tmp_path / "report")
    assert (stage, policy.stage2.steps, seed) == ("stage2", 3, 5)
    assert logged == {"valid_rate": 0.9}
    assert json.loads((tmp_path / "verdict").read_text())["passed"]


def test_on_a_claim_a_stage_is_gone_on_with_though_bounds_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Train
) -> None:
    """Another learning rate is another training, which may run beside it."""
    monkeypatch.setenv(CLAIM, str(tmp_path / "claim"))
    first, moved, other = (
        train(settings)[-1]
        for settings in (
            {"steps": 3, "health": {"patience": 5}},
            {"steps": 3, "health": {"patience": 9}},
            {"steps": 3, "learning_rate": 1e-4, "health": {"patience": 5}},
        )
    )
    assert first.parent == tmp_path / "claim"
    assert first == moved
    assert first != other
