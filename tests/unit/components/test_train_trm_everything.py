"""The component that trains the TRM on everything before the validation item waits for the TRM's gate alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deeprec.checks.gate import CheckRow, Verdict
from deeprec.components.boundary import CHECKPOINTS, CLAIM
from deeprec.components.train_trm_everything import train_trm_everything
from deeprec.trm import training


def run(tmp_path: Path, passed: bool = True) -> dict[str, float]:
    logged: dict[str, float] = {}
    train_trm_everything.python_func(
        gate=Verdict.of("trm", [CheckRow("a", "1", "r", passed)]).to_json(),
        trm={"epochs": 7},
        text={},
        seed=3,
        dataset=SimpleNamespace(path=str(tmp_path / "dataset"), uri="s3://a/dataset"),
        model=SimpleNamespace(path=str(tmp_path / "model")),
        metrics=SimpleNamespace(log_metric=logged.__setitem__),
    )
    return logged


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the training was asked for."""
    calls: list[tuple[Any, ...]] = []

    def train(*arguments: Any, checkpoint: Path | None, begin: Path | None) -> dict[str, float]:
        assert begin is None, "nothing to continue from is named"
        calls.append((*arguments, checkpoint))
        return {"ndcg@10": 0.5}

    monkeypatch.setattr(training, "train_everything", train)
    for name in (CHECKPOINTS, CLAIM):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_its_figures_are_logged_and_its_state_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[tuple[Any, ...]]
) -> None:
    assert run(tmp_path) == {"ndcg@10": 0.5}
    monkeypatch.setenv(CLAIM, str(tmp_path / "claim"))
    run(tmp_path)
    monkeypatch.setenv(CHECKPOINTS, str(tmp_path / "kept"))
    run(tmp_path)
    dataset, trm, _, seed, model, nowhere = seen[0]
    assert (dataset, trm.epochs, seed, model) == (tmp_path / "dataset", 7, 3, tmp_path / "model")
    assert nowhere is None
    assert seen[1][-1].parent == tmp_path / "claim"
    assert seen[2][-1] == tmp_path / "kept"


def test_it_does_not_start_behind_a_gate_that_did_not_pass(
    tmp_path: Path, seen: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, passed=False)
    assert capsys.readouterr().out.startswith("error: CheckFailed: trm")
    assert not seen
