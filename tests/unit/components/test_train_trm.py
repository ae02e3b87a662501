"""The component that trains the TRM hands on what the runner keeps for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deeprec.checks.gate import CheckRow, Verdict
from deeprec.components.boundary import CHECKPOINTS
from deeprec.components.train_trm import train_trm
from deeprec.trm import training


@pytest.mark.parametrize("kept", [True, False])
def test_a_killed_training_is_gone_on_with_where_the_runner_keeps_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    passed = Verdict.of("data", [CheckRow("a", "1", "r", True)])
    seen: dict[str, Any] = {}

    def train(*arguments: Any, checkpoint: Path | None, begin: Path | None) -> tuple[Verdict, dict[str, float]]:
        seen.update(outputs=arguments[-2:], checkpoint=checkpoint, begin=begin)
        return passed, {"ndcg@10": 0.5}

    monkeypatch.setattr(training, "train", train)
    monkeypatch.delenv(CHECKPOINTS, raising=False)
    if kept:
        monkeypatch.setenv(CHECKPOINTS, str(tmp_path / "kept"))
    logged: dict[str, float] = {}
    train_trm.python_func(
        gate=passed.to_json(),
        trm={},
        text={},
        seed=3,
        dataset=SimpleNamespace(path=str(tmp_path / "dataset"), uri="s3://a/dataset"),
        model=SimpleNamespace(path=str(tmp_path / "model")),
        report=SimpleNamespace(path=str(tmp_path / "report")),
        outcome=SimpleNamespace(path=str(tmp_path / "outcome"), metadata={}),
        metrics=SimpleNamespace(log_metric=logged.__setitem__),
        verdict=str(tmp_path / "verdict"),
    )
    assert seen["checkpoint"] == (tmp_path / "kept" if kept else None)
    assert seen["outputs"] == (tmp_path / "model", tmp_path / "report")
    assert logged == {"ndcg@10": 0.5}
    assert json.loads((tmp_path / "verdict").read_text())["passed"]
