"""The component that writes the bundle's TRM hands on the verdict's refusal, the sections and where state is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deeprec.bundle import refit as task
from deeprec.checks.gate import CheckRow, Verdict
from deeprec.components.boundary import CHECKPOINTS, CLAIM
from deeprec.components.refit import refit


def run(tmp_path: Path, passed: bool = True, **settings: Any) -> None:
    artifacts = {
        name: SimpleNamespace(path=str(tmp_path / name), uri=f"s3://a/{name}")
        for name in ("dataset", "policy_trm", "model")
    }
    gate = Verdict.of("evaluation", [CheckRow("a", "1", "r", passed)]).to_json()
    refit.python_func(gate=gate, serve="trm", trm={"epochs": 7}, text={}, settings=settings, seed=3, **artifacts)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the task was asked for."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(task, "refit", lambda *arguments, checkpoint: calls.append((*arguments, checkpoint)))
    for name in (CHECKPOINTS, CLAIM):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_inputs_settings_and_checkpoints_are_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[tuple[Any, ...]]
) -> None:
    run(tmp_path, refit=False)
    monkeypatch.setenv(CHECKPOINTS, str(tmp_path / "kept"))
    run(tmp_path)
    *inputs, serve, trm, _, bundle, seed, out, nowhere = seen[0]
    assert (inputs, serve) == ([tmp_path / "dataset", tmp_path / "policy_trm"], "trm")
    assert (trm.epochs, bundle.refit, seed, out) == (7, False, 3, tmp_path / "model")
    assert nowhere is None
    assert seen[1][5].refit
    assert seen[1][-1] == tmp_path / "kept"


def test_it_does_not_start_behind_a_gate_that_did_not_pass(
    tmp_path: Path, seen: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, passed=False)
    assert capsys.readouterr().out.startswith("error: CheckFailed: evaluation")
    assert not seen
