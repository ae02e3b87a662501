"""The GPU benchmark of training at toy size on the CPU: its code runs, and it says so when there is no GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import policy_gpu

TOY = (
    "--size", "toy", "--cpu", "--steps", "1", "--prompts", "2", "--rollouts", "2", "--micro-batch", "2",
    "--prompt", "8", "--segments", "2", "--segment", "4", "--list", "6",
)  # fmt: skip


def test_it_measures_rollouts_and_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["policy_gpu", *TOY, "--out", str(tmp_path / "figures.json")])
    policy_gpu.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["tokens_per_sequence"], figures["tokens_written_per_sequence"]) == (22, 8)
    assert (figures["sequences"], figures["steps"]) == (4, 1)
    assert figures["rollout_tokens_per_second"] > 0
    assert figures["training_tokens_per_second"] > 0
    assert figures["logprob_gap"] < 1e-4
    assert "sequences of a step         4 of 22 tokens" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["policy_gpu"])
    with pytest.raises(SystemExit) as ended:
        policy_gpu.main()
    assert ended.value.code == 3
    assert capsys.readouterr().out.startswith("no GPU")
